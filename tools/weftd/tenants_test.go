// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
)

// tenant has two machines with the same addresses as every other tenant's.
type tenant struct {
	name     string
	one, two string // namespaces
	packets  int
}

const tenantOne, tenantTwo = "10.5.0.1", "10.5.0.2"

// tenants makes the namespaces; join brings both ends of the tenant, a device called
// eth0 in each, to the agent's namespace.
func tenants(t *testing.T, join func(i int, x *tenant)) []tenant {
	t.Helper()
	all := []tenant{{name: "red", packets: 30}, {name: "blue", packets: 50}}
	for i := range all {
		x := &all[i]
		x.one, x.two = fmt.Sprintf("weft-e2e-%d-%s1", os.Getpid(), x.name), fmt.Sprintf("weft-e2e-%d-%s2", os.Getpid(), x.name)
		for _, ns := range []string{x.one, x.two} {
			command(t, "ip", "netns", "add", ns)
			t.Cleanup(func() { command(t, "ip", "netns", "del", ns) })
		}
		join(i, x)
		for ns, addr := range map[string]string{x.one: tenantOne, x.two: tenantTwo} {
			command(t, "ip", "-n", ns, "addr", "add", addr+"/24", "dev", "eth0")
			command(t, "ip", "-n", ns, "link", "set", "eth0", "up")
		}
	}
	return all
}

// port brings a namespace's eth0 to a bridge of the agent's namespace.
func (h *house) port(t *testing.T, name, bridge, ns string) {
	t.Helper()
	command(t, "ip", "link", "add", name, "netns", h.here, "type", "veth", "peer", "name", "eth0", "netns", ns)
	command(t, "ip", "-n", h.here, "link", "set", name, "master", bridge, "up")
}

// send sends the tenant's packets from one to two, with the ports that all use.
func (h *house) send(t *testing.T, x tenant) {
	t.Helper()
	var to net.PacketConn
	h.in(t, x.two, func() (err error) {
		to, err = net.ListenPacket("udp", tenantTwo+":5000")
		return err
	})
	defer to.Close()
	h.in(t, x.one, func() error {
		from, err := net.DialUDP("udp", &net.UDPAddr{IP: net.ParseIP(tenantOne), Port: 4000}, &net.UDPAddr{IP: net.ParseIP(tenantTwo), Port: 5000})
		if err != nil {
			return err
		}
		defer from.Close()
		buffer := make([]byte, 100)
		for range x.packets {
			if _, err := from.Write(buffer[:50]); err != nil {
				return err
			}
			if _, _, err := to.ReadFrom(buffer); err != nil {
				return err
			}
		}
		return nil
	})
}

// makes a device; a kernel that has no such kind skips a laptop's test, not the guests'.
func (h *house) makes(t *testing.T, kind string, args ...string) {
	t.Helper()
	out, err := exec.Command("ip", append([]string{"-n", h.here, "link", "add"}, args...)...).CombinedOutput()
	switch {
	case err == nil:
	case os.Getenv("WEFT_EMULATED") == "1":
		t.Fatalf("make a %s: %v: %s", kind, err, out)
	default:
		t.Skipf("this kernel has no %s: %s (make test-kernels)", kind, out)
	}
}

// ways are how two tenants with the same addresses may be joined in the agent's
// namespace. A tenant's packets show in so many scopes. Who its second end is is known
// unless that is another host's.
var ways = []struct {
	name   string
	all    bool // the tenants' namespaces are watched, too
	scopes int
	remote bool
	join   func(t *testing.T, h *house, i int, x *tenant)
}{
	{"two bridges", true, 1, false, func(t *testing.T, h *house, i int, x *tenant) {
		h.port(t, fmt.Sprint("two", i), h.bridge(t, i, x), x.two)
	}},
	{"bridges in two VRFs", false, 1, false, func(t *testing.T, h *house, i int, x *tenant) {
		bridge := h.bridge(t, i, x)
		command(t, "ip", "-n", h.here, "link", "set", bridge, "master", h.vrf(t, i))
		command(t, "ip", "-n", h.here, "addr", "add", "10.5.0.254/24", "dev", bridge)
		h.port(t, fmt.Sprint("two", i), bridge, x.two)
	}},
	{"two VRFs that route", true, 1, false, func(t *testing.T, h *house, i int, x *tenant) {
		h.routed(t, i, x)
	}},
	{"two VRFs that route, watched alone", false, 1, false, func(t *testing.T, h *house, i int, x *tenant) {
		h.routed(t, i, x)
	}},
	{"two VLANs of a trunk", false, 2, true, func(t *testing.T, h *house, i int, x *tenant) { // the far end is another host's
		vlan := strconv.Itoa(100 * (i + 1))
		h.makes(t, "VLAN device", "link", device, "name", "vlan"+vlan, "type", "vlan", "id", vlan)
		command(t, "ip", "-n", h.here, "link", "set", "vlan"+vlan, "master", h.bridge(t, i, x), "up")
		command(t, "ip", "-n", h.there, "link", "add", "link", "wire1", "name", "vlan"+vlan, "type", "vlan", "id", vlan)
		command(t, "ip", "-n", h.there, "link", "set", "vlan"+vlan, "netns", x.two, "name", "eth0")
	}},
	{"two VNIs", false, 1, true, func(t *testing.T, h *house, i int, x *tenant) { // the far end is another host's
		vni := strconv.Itoa(100 * (i + 1))
		command(t, "ip", "-n", h.here, "link", "add", "vx"+vni, "type", "vxlan", "id", vni, "dev", device, "local", hereAddr, "remote", thereAddr, "dstport", "4789")
		command(t, "ip", "-n", h.here, "link", "set", "vx"+vni, "master", h.bridge(t, i, x), "up")
		command(t, "ip", "-n", h.there, "link", "add", "vx"+vni, "type", "vxlan", "id", vni, "dev", "wire1", "local", thereAddr, "remote", hereAddr, "dstport", "4789")
		command(t, "ip", "-n", h.there, "link", "set", "vx"+vni, "netns", x.two, "name", "eth0")
	}},
}

// bridge makes a tenant's bridge, with its first end on it.
func (h *house) bridge(t *testing.T, i int, x *tenant) string {
	t.Helper()
	bridge := fmt.Sprint("br", i)
	command(t, "ip", "-n", h.here, "link", "add", bridge, "type", "bridge")
	command(t, "ip", "-n", h.here, "link", "set", bridge, "up")
	h.port(t, fmt.Sprint("one", i), bridge, x.one)
	return bridge
}

// vrf makes a tenant's VRF.
func (h *house) vrf(t *testing.T, i int) string {
	t.Helper()
	vrf := fmt.Sprint("vrf", i)
	h.makes(t, "VRF", vrf, "type", "vrf", "table", strconv.Itoa(10+i))
	command(t, "ip", "-n", h.here, "link", "set", vrf, "up")
	return vrf
}

// routed has a tenant's VRF route between its two ends.
func (h *house) routed(t *testing.T, i int, x *tenant) {
	t.Helper()
	vrf := h.vrf(t, i)
	for _, end := range []struct{ port, ns, addr string }{{fmt.Sprint("one", i), x.one, tenantOne}, {fmt.Sprint("two", i), x.two, tenantTwo}} {
		h.port(t, end.port, vrf, end.ns)
		command(t, "ip", "-n", h.here, "route", "add", end.addr+"/32", "dev", end.port, "vrf", vrf)
		h.in(t, h.here, func() error { // the ends believe that they are neighbours
			return errors.Join(
				os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0),
				os.WriteFile("/proc/sys/net/ipv4/conf/"+end.port+"/proxy_arp", []byte("1"), 0),
				os.WriteFile("/proc/sys/net/ipv4/neigh/"+end.port+"/proxy_delay", []byte("0"), 0))
		})
	}
}

// Two tenants with the same 5-tuple at the same time have records of their own, with
// what each sent and with their own ends.
func TestTenantsWithEqualFlowsStayApart(t *testing.T) {
	for _, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			h := newHouse(t)
			all := tenants(t, func(i int, x *tenant) { way.join(t, h, i, x) })
			watched := ""
			if way.all {
				watched = all[0].one + "," + all[0].two + "," + all[1].one + "," + all[1].two
			}
			h.start(t, "dataplane: {interval: 200ms, netns: ["+watched+"]}\nflows: {active_timeout: 2s, idle_timeout: 1s}\n")
			h.apart(t, all, way.scopes, way.remote)
		})
	}
}

// tenantScope is where a tenant's records may be.
type tenantScope struct {
	netns float64
	vlan  int
}

// apart has each tenant send, and waits until it has all that it sent in each of so many
// scopes, which nobody else has a record in.
func (h *house) apart(t *testing.T, all []tenant, scopes int, remote bool) {
	t.Helper()
	for _, x := range all {
		h.send(t, x)
	}
	h.eventually(t, "each tenant has records of its own", func() error {
		text, complaint, code := h.flowctl(t, "observe", "--last", "1000", "--to-port", "5000", "-o", "jsonl")
		if code != 0 {
			return fmt.Errorf("exit code %d: %s", code, complaint)
		}
		packets, names := map[tenantScope]int{}, map[tenantScope][2]string{}
		for line := range strings.Lines(text) {
			var r struct {
				Packets int
				Netns   float64 `json:"weft.scope.netns"`
				VLAN    int     `json:"weft.scope.vlan"`
				From    string  `json:"weft.source.evidence"`
				To      string  `json:"weft.destination.evidence"`
			}
			if err := json.Unmarshal([]byte(line), &r); err != nil {
				return err
			}
			at := tenantScope{r.Netns, r.VLAN}
			packets[at] += r.Packets
			_, from, _ := strings.Cut(r.From, "named ")
			_, to, _ := strings.Cut(r.To, "named ")
			to, _, _ = strings.Cut(to, "; ") // and which process listens, if it was seen while it did
			if was, there := names[at]; there && was != [2]string{from, to} {
				t.Fatalf("in scope %v: got names %q and %q in\n%s", at, was, []string{from, to}, text)
			}
			names[at] = [2]string{from, to}
		}
		if len(packets) != len(all)*scopes {
			return fmt.Errorf("got packets by scope %v, want %d scopes in\n%s", packets, len(all)*scopes, text)
		}
		for _, x := range all {
			of := 0
			for at, n := range packets {
				if n != x.packets {
					continue
				}
				of++
				want := [2]string{x.one, x.two}
				if remote {
					want[1] = ""
				}
				if at.vlan != 0 { // on the trunk is nobody's end
					want[0] = ""
				}
				if names[at] != want {
					return fmt.Errorf("%s in scope %v: got names %q, want %q in\n%s", x.name, at, names[at], want, text)
				}
			}
			if of != scopes {
				return fmt.Errorf("got packets by scope %v, want %d of %s in %d scopes in\n%s", packets, x.packets, x.name, scopes, text)
			}
		}
		return nil
	})
}
