// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Plug is what is known of a real device. Source: sysfs and ethtool.
type Plug struct {
	Driver string // empty: not known
	Speed  uint32 // Mbit/s; 0: not known
	PF     string // address of the physical function of an SR-IOV virtual one; empty: it is none
	Guest  bool   // this machine runs in another
}

// plug asks for a device. Events that change it come with the link's.
func (m *Mirror) plug(s *space, l *Link) *Plug {
	p := &Plug{Guest: inGuest()}
	dir := filepath.Join("/sys/bus", filepath.Base(l.Bus), "devices", filepath.Base(l.Address))
	if to, err := os.Readlink(filepath.Join(dir, "driver")); err == nil {
		p.Driver = filepath.Base(to)
	}
	if to, err := os.Readlink(filepath.Join(dir, "physfn")); err == nil {
		p.PF = filepath.Base(to)
	}
	if err := inNetns(m.own, s.fd, func() error { return p.ethtool(l.Name) }); err != nil && !gone(err) {
		m.opts.Log.Debug("cannot ask for a device's speed", "iface", l.Name, "netns", s.path, "err", err)
	}
	return p
}

// linkSettings is struct ethtool_cmd; its speed is in two halves.
type linkSettings struct {
	cmd, supported, advertising uint32
	speed                       uint16
	_                           [14]byte
	speedHigh                   uint16
	_                           [14]byte
}

var _ = [1]struct{}{}[unsafe.Sizeof(linkSettings{})-44]

// ethtool asks for the speed. Many devices have none, which is no error.
func (p *Plug) ethtool(name string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if p.Driver == "" {
		if info, err := unix.IoctlGetEthtoolDrvinfo(fd, name); err == nil {
			p.Driver = unix.ByteSliceToString(info.Driver[:])
		}
	}
	settings := linkSettings{cmd: unix.ETHTOOL_GSET}
	request := struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}{data: unsafe.Pointer(&settings)}
	copy(request.name[:unix.IFNAMSIZ-1], name)
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request))); e != 0 {
		return nil
	}
	if speed := uint32(settings.speedHigh)<<16 | uint32(settings.speed); speed != 0xffff && speed != 1<<32-1 {
		p.Speed = speed
	}
	return nil
}

var hypervisorFlag = regexp.MustCompile(`(?m)^flags\s*:.*\shypervisor(?:\s|$)`)

// inGuest reports whether the CPU says that a hypervisor is below (x86).
var inGuest = sync.OnceValue(func() bool {
	text, err := readBounded("/proc/cpuinfo")
	return err == nil && hypervisorFlag.Match(text)
})
