// SPDX-License-Identifier: Apache-2.0

package flows

import (
	"strconv"
	"strings"
)

// dnsRcodes are the names of answer codes as in the IANA registry of DNS RCODEs,
// spelled as resolvers' tools do.
var dnsRcodes = map[uint16]string{
	0: "NOERROR", 1: "FORMERR", 2: "SERVFAIL", 3: "NXDOMAIN", 4: "NOTIMP", 5: "REFUSED",
	6: "YXDOMAIN", 7: "YXRRSET", 8: "NXRRSET", 9: "NOTAUTH", 10: "NOTZONE", 11: "DSOTYPENI",
	16: "BADVERS", 17: "BADKEY", 18: "BADTIME", 19: "BADMODE", 20: "BADNAME", 21: "BADALG",
	22: "BADTRUNC", 23: "BADCOOKIE",
}

// dnsTypes are the names of record types as in the IANA registry, those that are
// asked for in earnest.
var dnsTypes = map[uint16]string{
	1: "A", 2: "NS", 5: "CNAME", 6: "SOA", 11: "WKS", 12: "PTR", 13: "HINFO", 15: "MX", 16: "TXT",
	17: "RP", 18: "AFSDB", 24: "SIG", 25: "KEY", 28: "AAAA", 29: "LOC", 33: "SRV", 35: "NAPTR",
	36: "KX", 37: "CERT", 39: "DNAME", 41: "OPT", 42: "APL", 43: "DS", 44: "SSHFP", 45: "IPSECKEY",
	46: "RRSIG", 47: "NSEC", 48: "DNSKEY", 49: "DHCID", 50: "NSEC3", 51: "NSEC3PARAM", 52: "TLSA",
	53: "SMIMEA", 55: "HIP", 59: "CDS", 60: "CDNSKEY", 61: "OPENPGPKEY", 62: "CSYNC", 63: "ZONEMD",
	64: "SVCB", 65: "HTTPS", 99: "SPF", 108: "EUI48", 109: "EUI64", 249: "TKEY", 250: "TSIG",
	251: "IXFR", 252: "AXFR", 255: "ANY", 256: "URI", 257: "CAA", 32769: "DLV",
}

// DNSRcodeName is the name of an answer code: "NXDOMAIN", or "RCODE12" where the
// registry has none.
func DNSRcodeName(rcode uint16) string {
	if name, ok := dnsRcodes[rcode]; ok {
		return name
	}
	return "RCODE" + strconv.Itoa(int(rcode))
}

// DNSTypeName is the name of a record type: "AAAA", or "TYPE1234" (RFC 3597)
// where there is none here.
func DNSTypeName(t uint16) string {
	if name, ok := dnsTypes[t]; ok {
		return name
	}
	return "TYPE" + strconv.Itoa(int(t))
}

// parseRcode reads an answer code as its name in any case, as RCODE12 or as a number.
func parseRcode(s string) (uint16, bool) {
	s = strings.ToUpper(s)
	for code, name := range dnsRcodes {
		if s == name {
			return code, true
		}
	}
	n, err := strconv.ParseUint(strings.TrimPrefix(s, "RCODE"), 10, 16)
	return uint16(n), err == nil
}
