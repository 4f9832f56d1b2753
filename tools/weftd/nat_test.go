// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// natRules are those of a router that sends the first Service on as it is, and what goes
// to the second one in its own name.
const natRules = `
table inet weft {
	chain pre { type nat hook prerouting priority -100;
		ip daddr { 10.96.0.1, 10.96.0.2 } meta l4proto { tcp, udp } dnat ip to 10.78.0.2:8080
		ip6 daddr fd00:96::1 meta l4proto { tcp, udp } dnat ip6 to [fd00:78::2]:8080
	}
	chain out { type nat hook output priority -100;
		ip daddr 10.96.0.1 meta l4proto { tcp, udp } dnat ip to 10.78.0.2:8080
	}
	chain post { type nat hook postrouting priority 100;
		ct original ip daddr 10.96.0.2 masquerade
		ct original ip daddr 10.78.0.2 masquerade
	}
}`

// router makes a client's namespace behind the agent's, which translates.
func (h *house) router(t *testing.T) (client string) {
	t.Helper()
	if _, err := exec.LookPath("nft"); err != nil {
		if os.Getenv("WEFT_REQUIRE_BPF") == "1" {
			t.Fatal("needs nft (nftables)")
		}
		t.Skip("needs nft (nftables)")
	}
	client = fmt.Sprintf("weft-e2e-%d-c", os.Getpid())
	command(t, "ip", "netns", "add", client)
	t.Cleanup(func() { command(t, "ip", "netns", "del", client) })
	command(t, "ip", "link", "add", "lan0", "netns", h.here, "type", "veth", "peer", "name", "lan1", "netns", client)
	for _, ns := range []string{h.here, h.there, client} {
		h.in(t, ns, func() error {
			return errors.Join(os.WriteFile("/proc/sys/net/ipv6/conf/all/disable_ipv6", []byte("0"), 0), os.WriteFile("/proc/sys/net/ipv6/conf/default/accept_dad", []byte("0"), 0))
		})
	}
	h.in(t, h.here, func() error {
		return errors.Join(os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0), os.WriteFile("/proc/sys/net/ipv6/conf/all/forwarding", []byte("1"), 0))
	})
	for _, a := range [][3]string{
		{h.here, "lan0", "10.79.0.1/24"}, {client, "lan1", "10.79.0.2/24"},
		{h.here, "lan0", "fd00:79::1/64"}, {client, "lan1", "fd00:79::2/64"}, {h.here, device, "fd00:78::1/64"}, {h.there, "wire1", "fd00:78::2/64"},
	} {
		args := []string{"ip", "-n", a[0], "addr", "add", a[2], "dev", a[1]}
		if strings.Contains(a[2], "::") {
			args = append(args, "nodad")
		}
		command(t, args...)
	}
	command(t, "ip", "-n", h.here, "link", "set", "lan0", "up")
	command(t, "ip", "-n", client, "link", "set", "lan1", "up")
	for ns, via := range map[string][2]string{client: {"10.79.0.1", "fd00:79::1"}, h.there: {hereAddr, "fd00:78::1"}} {
		for _, gateway := range via {
			command(t, "ip", "-n", ns, "route", "add", "default", "via", gateway)
		}
	}
	command(t, "ip", "-n", h.here, "route", "add", "10.96.0.0/24", "via", thereAddr) // for what the agent's namespace opens itself
	nft := exec.Command("nsenter", "--net=/run/netns/"+h.here, "nft", "-f", "-")
	nft.Stdin = strings.NewReader(natRules)
	if said, err := nft.CombinedOutput(); err != nil {
		t.Fatalf("nft: %v: %s", err, said)
	}
	return client
}

// echo answers everything on port 8080 there, until the test ends.
func (h *house) echo(t *testing.T) {
	t.Helper()
	h.in(t, h.there, func() error {
		streams, err := net.Listen("tcp", ":8080")
		if err != nil {
			return err
		}
		datagrams, err := net.ListenPacket("udp", ":8080")
		if err != nil {
			return errors.Join(err, streams.Close())
		}
		t.Cleanup(func() { streams.Close(); datagrams.Close() })
		go func() {
			for conn, err := streams.Accept(); err == nil; conn, err = streams.Accept() {
				go func() {
					defer conn.Close()
					b := make([]byte, 100)
					for n, err := conn.Read(b); err == nil; n, err = conn.Read(b) {
						if _, err := conn.Write(b[:n]); err != nil {
							return
						}
					}
				}()
			}
		}()
		go func() {
			b := make([]byte, 100)
			for n, from, err := datagrams.ReadFrom(b); err == nil; n, from, err = datagrams.ReadFrom(b) {
				if _, err := datagrams.WriteTo(b[:n], from); err != nil {
					return
				}
			}
		}()
		return nil
	})
}

// natRecord is what a record says of its addresses.
type natRecord struct {
	Proto   string `json:"network.transport"`
	Src     string `json:"source.address"`
	SrcPort int    `json:"source.port"`
	Dst     string `json:"destination.address"`
	DstPort int    `json:"destination.port"`
	SrcNAT  string `json:"weft.source.nat.address"`
	DstNAT  string `json:"weft.destination.nat.address"`
	NATPort int    `json:"weft.destination.nat.port"`
	Basis   string `json:"weft.nat.evidence"`
	ID      string `json:"weft.connection.id"`
	Packets uint64 `json:"packets"`
	Back    uint64 `json:"reverse.packets"`
	Hops    []struct {
		Interface, Direction, NAT string
		Reverse                   bool
		Packets                   uint64
	}
}

func (h *house) natRecords(t *testing.T, filter ...string) (all []natRecord, text string) {
	t.Helper()
	text, complaint, code := h.flowctl(t, append([]string{"observe", "--last", "1000", "-o", "jsonl"}, filter...)...)
	if code != 0 && code != 3 {
		t.Fatalf("observe: exit code %d: %s", code, complaint)
	}
	for line := range strings.Lines(text) {
		var r natRecord
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatal(err)
		}
		all = append(all, r)
	}
	return all, text
}

// TestTranslatedConnectionsAreOneRecord: of a real kernel's translations, streams and
// datagrams, passed on and opened here, IPv4 and IPv6, every packet once.
func TestTranslatedConnectionsAreOneRecord(t *testing.T) {
	h := newHouse(t)
	client := h.router(t)
	h.echo(t)
	h.start(t, "dataplane: {interval: 200ms}\nflows: {active_timeout: 60s, idle_timeout: 1s}\n")
	forth := []string{"lan0 receive before", "wire0 transmit after"}
	back := []string{"wire0 receive after", "lan0 transmit before"}
	own := []string{"wire0 transmit after", "wire0 receive after"}
	ports := map[int]string{}
	for i, c := range []struct {
		name, ns, to string
		want         natRecord
		hops         []string
	}{
		{"to a Service", client, "10.96.0.1:80", natRecord{Src: "10.79.0.2", Dst: thereAddr, DstNAT: "10.96.0.1"}, slices.Concat(forth, back)},
		{"masqueraded to a Service", client, "10.96.0.2:80", natRecord{Src: "10.79.0.2", Dst: thereAddr, DstNAT: "10.96.0.2", SrcNAT: hereAddr}, slices.Concat(forth, back)},
		{"masqueraded", client, "10.78.0.2:8080", natRecord{Src: "10.79.0.2", Dst: thereAddr, SrcNAT: hereAddr}, slices.Concat(forth, back)},
		{"from the server to itself", h.there, "10.96.0.2:80", natRecord{Src: thereAddr, Dst: thereAddr, DstNAT: "10.96.0.2", SrcNAT: hereAddr},
			[]string{"wire0 receive before", "wire0 transmit after", "wire0 receive after", "wire0 transmit before"}},
		{"opened here", h.here, "10.96.0.1:80", natRecord{Src: hereAddr, Dst: thereAddr, DstNAT: "10.96.0.1"}, own},
		{"IPv6", client, "[fd00:96::1]:80", natRecord{Src: "fd00:79::2", Dst: "fd00:78::2", DstNAT: "fd00:96::1"}, slices.Concat(forth, back)},
	} {
		for _, network := range []string{"tcp", "udp"} {
			port := 41000 + 10*i + len(ports)%2
			ports[port] = c.name + " " + network
			n := uint64(20 + i)
			h.in(t, c.ns, func() error { return exchange(network, port, c.to, int(n)) })
			h.eventually(t, c.name+" "+network+" has its record", func() error {
				all, text := h.natRecords(t, "--from-port", fmt.Sprint(port))
				if len(all) != 1 {
					return fmt.Errorf("got %d records, want 1:\n%s", len(all), text)
				}
				r := all[0]
				var hops []string
				for _, p := range r.Hops {
					hops = append(hops, p.Interface+" "+p.Direction+" "+p.NAT)
					if want := map[bool]uint64{false: r.Packets, true: r.Back}[p.Reverse]; p.Packets != want {
						return fmt.Errorf("%d packets at %+v, want %d", p.Packets, p, want)
					}
				}
				if network == "udp" && (r.Packets != n || r.Back != n) || network == "tcp" && (r.Packets < n || r.ID == "") {
					return fmt.Errorf("got %d and %d packets, connection %q, want %d:\n%s", r.Packets, r.Back, r.ID, n, text)
				}
				got := natRecord{Src: r.Src, Dst: r.Dst, DstNAT: r.DstNAT, SrcNAT: r.SrcNAT}
				if fmt.Sprint(got) != fmt.Sprint(c.want) || r.Proto != network || r.SrcPort != port || r.DstPort != 8080 || r.NATPort != 0 && r.NATPort != 80 || r.Basis != "conntrack" || !slices.Equal(hops, c.hops) {
					return fmt.Errorf("got hops %q, want %q, of\n%+v, want\n%+v:\n%s", hops, c.hops, got, c.want, text)
				}
				return nil
			})
		}
	}
	for _, f := range []struct {
		of   []string
		want int
	}{{[]string{"--to-ip", "10.96.0.1"}, 4}, {[]string{"--to-ip", "10.96.0.2"}, 4}, {[]string{"--from-ip", hereAddr, "--to-port", "8080"}, 8}, {[]string{"--to-ip", "fd00:96::/64"}, 2}} {
		if all, text := h.natRecords(t, f.of...); len(all) != f.want {
			t.Errorf("%v: got %d records, want %d:\n%s", f.of, len(all), f.want, text)
		}
	}
	if all, text := h.natRecords(t, "--to-port", "8080"); len(all) != len(ports) {
		t.Errorf("to the servers: got %d records, want %d:\n%s", len(all), len(ports), text)
	}
	if text, complaint, code := h.flowctl(t, "ledger"); code != 0 {
		t.Errorf("ledger: exit code %d:\n%s%s", code, text, complaint)
	}
}

// TestConnectionsThatAreTranslatedTwiceAreOneRecord: the agent's namespace sends a Service's connections to a
// port of the next one, which has a server behind it answer, both in their own name.
func TestConnectionsThatAreTranslatedTwiceAreOneRecord(t *testing.T) {
	h := newHouse(t)
	client := h.router(t)
	server := fmt.Sprintf("weft-e2e-%d-d", os.Getpid())
	command(t, "ip", "netns", "add", server)
	t.Cleanup(func() { command(t, "ip", "netns", "del", server) })
	command(t, "ip", "link", "add", "srv0", "netns", h.there, "type", "veth", "peer", "name", "srv1", "netns", server)
	for _, a := range [][3]string{{h.there, "srv0", "10.77.0.1/24"}, {server, "srv1", "10.77.0.2/24"}} {
		command(t, "ip", "-n", a[0], "addr", "add", a[2], "dev", a[1])
		command(t, "ip", "-n", a[0], "link", "set", a[1], "up")
	}
	h.in(t, h.there, func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0) })
	nft := exec.Command("nsenter", "--net=/run/netns/"+h.there, "nft", "-f", "-")
	nft.Stdin = strings.NewReader(`
table ip weft {
	chain pre { type nat hook prerouting priority -100; ip daddr 10.78.0.2 meta l4proto { tcp, udp } th dport 8080 dnat to 10.77.0.2:8080; }
	chain post { type nat hook postrouting priority 100; oifname srv0 masquerade; }
}`)
	if said, err := nft.CombinedOutput(); err != nil {
		t.Fatalf("nft: %v: %s", err, said)
	}
	behind := *h
	behind.there = server
	behind.echo(t)
	h.start(t, fmt.Sprintf("dataplane: {interval: 200ms, netns: [%s]}\nflows: {active_timeout: 60s, idle_timeout: 1s}\n", h.there))
	want := []string{
		"lan0 receive before", "wire0 transmit between", "wire1 receive between", "srv0 transmit after",
		"srv0 receive after", "wire1 transmit between", "wire0 receive between", "lan0 transmit before",
	}
	for i, network := range []string{"tcp", "udp"} {
		port, n := 43000+i, uint64(20)
		h.in(t, client, func() error { return exchange(network, port, "10.96.0.2:80", int(n)) })
		h.eventually(t, network+" has its record", func() error {
			all, text := h.natRecords(t, "--protocol", network)
			if len(all) != 1 {
				return fmt.Errorf("got %d records, want 1:\n%s", len(all), text)
			}
			r, hops := all[0], []string(nil)
			for _, p := range r.Hops {
				hops = append(hops, p.Interface+" "+p.Direction+" "+p.NAT)
				if want := map[bool]uint64{false: r.Packets, true: r.Back}[p.Reverse]; p.Packets != want {
					return fmt.Errorf("%d packets at %+v, want %d", p.Packets, p, want)
				}
			}
			if !slices.Equal(hops, want) || r.Basis != "conntrack" || r.Src != "10.79.0.2" || r.Dst != "10.77.0.2" || r.DstNAT != "10.96.0.2" || r.SrcNAT != "10.77.0.1" ||
				network == "udp" && (r.Packets != n || r.Back != n) {
				return fmt.Errorf("got hops %q, want %q:\n%s", hops, want, text)
			}
			return nil
		})
	}
	if text, complaint, code := h.flowctl(t, "ledger"); code != 0 {
		t.Errorf("ledger: exit code %d:\n%s%s", code, text, complaint)
	}
}

// TestWhatIsRedirectedToALoopbackAddressIsOneRecord, where that is watched: with the address that it was
// opened to.
func TestWhatIsRedirectedToALoopbackAddressIsOneRecord(t *testing.T) {
	h := newHouse(t)
	h.router(t)
	nft := exec.Command("nsenter", "--net=/run/netns/"+h.here, "nft", "-f", "-")
	nft.Stdin = strings.NewReader("table ip redirected { chain out { type nat hook output priority -101; ip daddr 10.96.0.9 tcp dport 80 redirect to :8080; }; }")
	if said, err := nft.CombinedOutput(); err != nil {
		t.Fatalf("nft: %v: %s", err, said)
	}
	local := *h
	local.there = h.here
	local.echo(t)
	h.start(t, "dataplane: {interval: 200ms, exclude: []}\nflows: {active_timeout: 60s, idle_timeout: 1s}\n")
	h.in(t, h.here, func() error { return exchange("tcp", 44000, "10.96.0.9:80", 20) })
	h.eventually(t, "it has its record", func() error {
		all, text := h.natRecords(t, "--from-port", "44000")
		if len(all) != 1 {
			return fmt.Errorf("got %d records, want 1:\n%s", len(all), text)
		}
		if r := all[0]; r.Src != hereAddr || r.Dst != "127.0.0.1" || r.DstNAT != "10.96.0.9" || r.NATPort != 80 || r.DstPort != 8080 || r.Basis != "conntrack" || r.Packets < 20 || r.Back < 20 {
			return fmt.Errorf("got %+v, want 10.96.0.9:80 sent to 127.0.0.1:8080:\n%s", r, text)
		}
		return nil
	})
}

// TestConnectionsThroughARouterThatIsNotAskedAreOneRecord: the agent sees both sides of a
// router, and not its connection tracking; sequence numbers tell of streams, nothing of
// datagrams, and with flows.join off nothing is joined.
func TestConnectionsThroughARouterThatIsNotAskedAreOneRecord(t *testing.T) {
	h := newHouse(t)
	client := h.router(t)
	h.echo(t)
	command(t, "ip", "-n", client, "link", "set", "lo", "up")
	agent := *h
	agent.here = client
	one := []string{"lan1 transmit before", "wire1 receive after", "wire1 transmit after", "lan1 receive before"}
	for i, c := range []struct {
		network, join string
		want          int
		hops          []string
	}{{"tcp", "on", 1, one}, {"udp", "on", 2, nil}, {"tcp", "off", 2, nil}} {
		port := 42000 + i
		w := agent.start(t, fmt.Sprintf("dataplane: {interval: 200ms, netns: [%s]}\nflows: {active_timeout: 60s, idle_timeout: 1s, join: %s}\n", h.there, c.join))
		agent.in(t, client, func() error { return exchange(c.network, port, "10.96.0.2:80", 20) })
		agent.eventually(t, fmt.Sprintf("%s, join %s: every record", c.network, c.join), func() error {
			all, text := agent.natRecords(t, "--protocol", c.network, "--from-port", fmt.Sprint(port))
			if len(all) != c.want {
				return fmt.Errorf("got %d records, want %d:\n%s", len(all), c.want, text)
			}
			if c.hops == nil {
				return nil
			}
			r, hops := all[0], []string(nil)
			for _, p := range r.Hops {
				hops = append(hops, p.Interface+" "+p.Direction+" "+p.NAT)
			}
			if !slices.Equal(hops, c.hops) || r.Basis != "connection_id" || r.Src != "10.79.0.2" || r.Dst != thereAddr || r.DstNAT != "10.96.0.2" || r.SrcNAT != hereAddr {
				return fmt.Errorf("got hops %q, want %q:\n%s", hops, c.hops, text)
			}
			return nil
		})
		w.signal(t, syscall.SIGTERM)
		if code := w.wait(t); code != 0 {
			t.Fatalf("exit code %d", code)
		}
	}
}

// exchange sends n messages from a port and takes the answer to each.
func exchange(network string, port int, to string, n int) error {
	d := net.Dialer{Timeout: 5 * time.Second}
	if d.LocalAddr = (&net.TCPAddr{Port: port}); network == "udp" {
		d.LocalAddr = &net.UDPAddr{Port: port}
	}
	conn, err := d.Dial(network, to)
	if err != nil {
		return err
	}
	defer conn.Close()
	b := make([]byte, 50)
	for range n {
		if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
			return err
		}
		if _, err := conn.Write(b); err != nil {
			return err
		}
		if _, err := conn.Read(b); err != nil {
			return err
		}
	}
	return nil
}
