// SPDX-License-Identifier: Apache-2.0

package flows

import (
	"net/netip"
	"testing"
)

func key(proto uint8, src string, sport uint16, dst string, dport uint16) Key {
	return Key{
		Src:   netip.AddrPortFrom(netip.MustParseAddr(src), sport),
		Dst:   netip.AddrPortFrom(netip.MustParseAddr(dst), dport),
		Proto: proto,
	}
}

// The values are the published ones of corelight/community-id-spec (baseline)
// and corelight/pycommunityid (tests), for seeds 0 and 1.
func TestCommunityIDEqualsThePublishedVectors(t *testing.T) {
	const (
		nd1, nd2 = "fe80::200:86ff:fe05:80da", "fe80::260:97ff:fe07:69ea"
		host     = "3ffe:507:0:1:200:86ff:fe05:80da"
	)
	for _, v := range []struct {
		what         string
		k            Key
		seed0, seed1 string
	}{
		{"TCP", key(6, "128.232.110.120", 34855, "66.35.250.204", 80), "1:LQU9qZlK+B5F3KDmev6m5PMibrg=", "1:3V71V58M3Ksw/yuFALMcW0LAHvc="},
		{"TCP back", key(6, "66.35.250.204", 80, "128.232.110.120", 34855), "1:LQU9qZlK+B5F3KDmev6m5PMibrg=", "1:3V71V58M3Ksw/yuFALMcW0LAHvc="},
		{"TCP, low source port", key(6, "10.0.0.1", 10, "10.0.0.2", 11569), "1:SXBGMX1lBOwhhoDrZynfROxnhnM=", "1:HmBRGR+fUyXF4t8WEtal7Y0gEAo="},
		{"TCP over IPv6", key(6, "2001:470:e5bf:dead:4957:2174:e82c:4887", 63943, "2607:f8b0:400c:c03::1a", 25), "1:/qFaeAR+gFe1KYjMzVDsMv+wgU4=", "1:eJYTW6AOzFLlSUoESovMjnu7rMw="},
		{"TCP over IPv6 back", key(6, "2607:f8b0:400c:c03::1a", 25, "2001:470:e5bf:dead:4957:2174:e82c:4887", 63943), "1:/qFaeAR+gFe1KYjMzVDsMv+wgU4=", "1:eJYTW6AOzFLlSUoESovMjnu7rMw="},
		{"UDP", key(17, "192.168.1.52", 54585, "8.8.8.8", 53), "1:d/FP5EW3wiY1vCndhwleRRKHowQ=", "1:Q9We8WO3piVF8yEQBNJF4uiSVrI="},
		{"UDP back", key(17, "8.8.8.8", 53, "192.168.1.52", 54585), "1:d/FP5EW3wiY1vCndhwleRRKHowQ=", "1:Q9We8WO3piVF8yEQBNJF4uiSVrI="},
		{"SCTP", key(132, "192.168.170.8", 7, "192.168.170.56", 7), "1:MP2EtRCAUIZvTw6MxJHLV7N7JDs=", "1:5w3ZRjeKBzqT3zsaEECDGjUbYeg="},
		{"SCTP, two ports", key(132, "192.168.170.8", 7, "192.168.170.56", 80), "1:jQgCxbku+pNGw8WPbEc/TS/uTpQ=", "1:Y1/0jQg6e+I3ZwZZ9LP65DNbTXU="},
		{"SCTP, two ports back", key(132, "192.168.170.56", 80, "192.168.170.8", 7), "1:jQgCxbku+pNGw8WPbEc/TS/uTpQ=", "1:Y1/0jQg6e+I3ZwZZ9LP65DNbTXU="},
		{"RSVP: no ports", key(46, "10.1.12.1", 0, "10.1.12.2", 0), "1:KHlLkgoJW7ifUTyTSgyVfkFHzKw=", "1:rYir8gphR31noO9iDRQmF/BteEI="},
		{"RSVP back", key(46, "10.1.12.2", 0, "10.1.12.1", 0), "1:KHlLkgoJW7ifUTyTSgyVfkFHzKw=", "1:rYir8gphR31noO9iDRQmF/BteEI="},
		{"RSVP, other hosts", key(46, "10.1.24.4", 0, "10.1.12.1", 0), "1:/nQI4Rh/TtY3mf0R2gJFBkVlgS4=", "1:BK3BVW3U2eemuwVQVN3zd/GULno="},
		{"ICMP echo", key(1, "192.168.0.89", 8, "192.168.0.1", 0), "1:X0snYXpgwiv9TZtqg64sgzUn6Dk=", "1:03g6IloqVBdcZlPyX8r0hgoE7kA="},
		{"ICMP echo reply", key(1, "192.168.0.1", 0, "192.168.0.89", 0), "1:X0snYXpgwiv9TZtqg64sgzUn6Dk=", "1:03g6IloqVBdcZlPyX8r0hgoE7kA="},
		{"ICMP echo reply, odd code", key(1, "192.168.0.1", 0, "192.168.0.89", 20), "1:X0snYXpgwiv9TZtqg64sgzUn6Dk=", "1:03g6IloqVBdcZlPyX8r0hgoE7kA="},
		{"ICMP time exceeded: one way", key(1, "10.0.0.1", 11, "10.0.0.2", 0), "1:YHxtAirCG//0OzkcVAukqKQN9xM=", "1:XjUibYHaafLQ3pxQeiMI8g25q20="},
		{"ICMP 20/0: one way, not ordered", key(1, "192.168.0.89", 20, "192.168.0.1", 0), "1:3o2RFccXzUgjl7zDpqmY7yJi8rI=", "1:lCXHHxavE1Vq3oX9NH5ladQg02o="},
		{"ICMP 20/1: another code", key(1, "192.168.0.89", 20, "192.168.0.1", 1), "1:tz/fHIDUHs19NkixVVoOZywde+I=", "1:Ie3wmFyxiEyikbsbcO03d2nh+PM="},
		{"ICMPv6 neighbour solicitation", key(58, nd1, 135, nd2, 0), "1:dGHyGvjMfljg6Bppwm3bg0LO8TY=", "1:kHa1FhMYIT6Ym2Vm2AOtoOARDzY="},
		{"ICMPv6 neighbour advertisement", key(58, nd2, 136, nd1, 0), "1:dGHyGvjMfljg6Bppwm3bg0LO8TY=", "1:kHa1FhMYIT6Ym2Vm2AOtoOARDzY="},
		{"ICMPv6 solicitation from the other side", key(58, nd2, 135, nd1, 0), "1:zavyT/cezQr1fmImYCwYnMXbgck=", "1:2hSqmsDZ2kdcY9kbiUzOEBic0iM="},
		{"ICMPv6 echo", key(58, host, 128, "3ffe:501:0:1001::2", 0), "1:+TW+HtLHvV1xnGhV1lv7XoJrqQg=", "1:GfZxjAkDk2MkegpBYHV6tadtFXQ="},
		{"ICMPv6 echo reply", key(58, "3ffe:501:0:1001::2", 129, host, 0), "1:+TW+HtLHvV1xnGhV1lv7XoJrqQg=", "1:GfZxjAkDk2MkegpBYHV6tadtFXQ="},
		{"ICMPv6 router solicitation", key(58, nd1, 133, "ff02::2", 0), "1:hO+sN4H+MG5MY/8hIrXPqc4ZQz0=", "1:L7Ka0ZMYu+J3bL4ulW2PrqyXNo8="},
		{"ICMPv6 router advertisement", key(58, nd2, 134, "ff02::1", 0), "1:pkvHqCL88/tg1k4cPigmZXUtL00=", "1:K/ee5UCqAMAQXDorP5nSa2CGLjc="},
		{"ICMPv6 unreachable: one way", key(58, "3ffe:501:410:0:2c0:dfff:fe47:33e", 1, host, 4), "1:hLZd0XGWojozrvxqE0dWB1iM6R0=", "1:W8MHwXpWzpoSTD+cGcaJr4u0ys8="},
		{"ICMPv6 time exceeded: one way", key(58, "3ffe:501:1800:2345::2", 3, host, 0), "1:2ObVBgIn28oZvibYZhZMBgh7WdQ=", "1:lVEtCZpYu84Xqaa++3lXFyuu2n4="},
		{"ICMPv6 time exceeded, near", key(58, "3ffe:507:0:1:260:97ff:fe07:69ea", 3, host, 0), "1:NdobDX8PQNJbAyfkWxhtL2Pqp5w=", "1:OlOWx9psIbBFi7lOCw/4MhlKR9M="},
		{"ICMPv6 time exceeded, near, back", key(58, host, 3, "3ffe:507:0:1:260:97ff:fe07:69ea", 0), "1:/OGBt9BN1ofenrmSPWYicpij2Vc=", "1:Ij4ZxnC87/MXzhOjvH2vHu7LRmE="},
	} {
		for seed, want := range []string{v.seed0, v.seed1} {
			if got := CommunityID(v.k, uint16(seed)); got != want {
				t.Errorf("%s, seed %d: got %s, want %s", v.what, seed, got, want)
			}
		}
	}
}

func TestCanonicalKeyIsOneForBothDirections(t *testing.T) {
	for _, v := range []struct {
		what        string
		there, back Key
		one         bool
	}{
		{"TCP", key(6, "10.0.0.2", 40000, "10.0.0.1", 80), key(6, "10.0.0.1", 80, "10.0.0.2", 40000), true},
		{"same address, ports decide", key(17, "127.0.0.1", 9, "127.0.0.1", 8), key(17, "127.0.0.1", 8, "127.0.0.1", 9), true},
		{"echo to oneself", key(1, "127.0.0.1", 8, "127.0.0.1", 0), key(1, "127.0.0.1", 0, "127.0.0.1", 0), true},
		{"ICMP unreachable both ways", key(1, "10.0.0.2", 3, "10.0.0.1", 1), key(1, "10.0.0.1", 3, "10.0.0.2", 1), false},
		{"two echo requests crossing", key(1, "10.0.0.2", 8, "10.0.0.1", 0), key(1, "10.0.0.1", 8, "10.0.0.2", 0), false},
	} {
		a, ra := Canonical(v.there)
		b, rb := Canonical(v.back)
		if (a == b) != v.one {
			t.Errorf("%s: canonical %v and %v: one conversation %v, want %v", v.what, a, b, a == b, v.one)
		}
		if v.one && ra == rb {
			t.Errorf("%s: both directions reversed=%v, want them to differ", v.what, ra)
		}
	}
}
