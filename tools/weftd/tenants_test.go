// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
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

// Two tenants with the same 5-tuple at the same time have a record each, with what
// each sent, on two bridges of one namespace, in two VRFs and in two VNIs.
func TestTenantsWithEqualFlowsStayApart(t *testing.T) {
	for _, c := range []struct {
		name, netns string
		join        func(t *testing.T, h *house, i int, x *tenant, bridge string)
	}{
		{"two bridges", "all", func(t *testing.T, h *house, i int, x *tenant, bridge string) {
			h.port(t, fmt.Sprint("two", i), bridge, x.two)
		}},
		{"two VRFs", "all", func(t *testing.T, h *house, i int, x *tenant, bridge string) {
			vrf := fmt.Sprint("vrf", i)
			if out, err := exec.Command("ip", "-n", h.here, "link", "add", vrf, "type", "vrf", "table", strconv.Itoa(10+i)).CombinedOutput(); err != nil {
				t.Skipf("this kernel has no VRF: %s", out)
			}
			command(t, "ip", "-n", h.here, "link", "set", vrf, "up")
			command(t, "ip", "-n", h.here, "link", "set", bridge, "master", vrf)
			command(t, "ip", "-n", h.here, "addr", "add", "10.5.0.254/24", "dev", bridge)
			h.port(t, fmt.Sprint("two", i), bridge, x.two)
		}},
		{"two VNIs", "", func(t *testing.T, h *house, i int, x *tenant, bridge string) { // the far end is another host's
			vni := strconv.Itoa(100 * (i + 1))
			command(t, "ip", "-n", h.here, "link", "add", "vx"+vni, "type", "vxlan", "id", vni, "dev", device, "local", hereAddr, "remote", thereAddr, "dstport", "4789")
			command(t, "ip", "-n", h.here, "link", "set", "vx"+vni, "master", bridge, "up")
			command(t, "ip", "-n", h.there, "link", "add", "vx"+vni, "type", "vxlan", "id", vni, "dev", "wire1", "local", thereAddr, "remote", hereAddr, "dstport", "4789")
			command(t, "ip", "-n", h.there, "link", "set", "vx"+vni, "netns", x.two, "name", "eth0")
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHouse(t)
			all := tenants(t, func(i int, x *tenant) {
				bridge := fmt.Sprint("br", i)
				command(t, "ip", "-n", h.here, "link", "add", bridge, "type", "bridge")
				command(t, "ip", "-n", h.here, "link", "set", bridge, "up")
				h.port(t, fmt.Sprint("one", i), bridge, x.one)
				c.join(t, h, i, x, bridge)
			})
			h.start(t, "dataplane: {interval: 200ms, netns: ["+c.netns+"]}\nflows: {active_timeout: 2s, idle_timeout: 1s}\n")
			h.apart(t, all)
		})
	}
}

// apart has each tenant send, and waits for a record for each with what it sent.
func (h *house) apart(t *testing.T, all []tenant) {
	t.Helper()
	for _, x := range all {
		h.send(t, x)
	}
	h.eventually(t, "each tenant has a record of its own", func() error {
		text, complaint, code := h.flowctl(t, "observe", "--last", "1000", "--to-port", "5000", "-o", "jsonl")
		if code != 0 {
			return fmt.Errorf("exit code %d: %s", code, complaint)
		}
		packets := map[float64]uint64{}
		for line := range strings.Lines(text) {
			var r struct {
				Packets uint64
				Scope   float64 `json:"weft.scope.netns"`
			}
			if err := json.Unmarshal([]byte(line), &r); err != nil {
				return err
			}
			packets[r.Scope] += r.Packets
		}
		if len(packets) != len(all) {
			return fmt.Errorf("got packets by scope %v, want %d scopes in\n%s", packets, len(all), text)
		}
		for _, x := range all {
			found := false
			for _, n := range packets {
				found = found || n == uint64(x.packets)
			}
			if !found {
				return fmt.Errorf("got packets by scope %v, want %d of %s", packets, x.packets, x.name)
			}
		}
		return nil
	})
}
