// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"
)

// TestLayoutsArePinned fails when a field that crosses to Go moves: user space
// reads these through a mapping, by offset.
func TestLayoutsArePinned(t *testing.T) {
	var (
		slot  FlowFlowSlot
		key   FlowFlowKey
		cold  FlowFlowCold
		ev    FlowFlowEvicted
		place FlowLinkPlace
		rare  FlowPointRare
		ctl   FlowFlowControl
		line  FlowTcpLine
		hk    FlowHashHashKey
		hf    FlowHashHashFlow
		dk    DropDropKey
		dc    DropDropCount
	)
	for name, c := range map[string][2]uintptr{
		"flow_slot":           {unsafe.Sizeof(slot), 64},
		"flow_slot.key":       {unsafe.Offsetof(slot.Key), 8},
		"flow_slot.bytes":     {unsafe.Offsetof(slot.Bytes), 48},
		"flow_slot.packets":   {unsafe.Offsetof(slot.Packets), 56},
		"flow_slot.last":      {unsafe.Offsetof(slot.Last), 60},
		"flow_slot.flags":     {unsafe.Offsetof(slot.Flags), 62},
		"flow_slot.gen":       {unsafe.Offsetof(slot.Gen), 63},
		"flow_key":            {unsafe.Sizeof(key), 40},
		"flow_key.dst":        {unsafe.Offsetof(key.Dst), 16},
		"flow_key.sport":      {unsafe.Offsetof(key.Sport), 32},
		"flow_key.point":      {unsafe.Offsetof(key.Point), 36},
		"flow_key.proto":      {unsafe.Offsetof(key.Proto), 38},
		"flow_key.kind":       {unsafe.Offsetof(key.Kind), 39},
		"flow_cold":           {unsafe.Sizeof(cold), 32},
		"flow_cold.smac":      {unsafe.Offsetof(cold.Smac), 16},
		"flow_cold.flags":     {unsafe.Offsetof(cold.Flags), 28},
		"flow_evicted":        {unsafe.Sizeof(ev), 168},
		"flow_evicted.hot":    {unsafe.Offsetof(ev.Hot), 8},
		"flow_evicted.cold":   {unsafe.Offsetof(ev.Cold), 72},
		"flow_evicted.tcp":    {unsafe.Offsetof(ev.Tcp), 104},
		"tcp_line":            {unsafe.Sizeof(line), 64},
		"tcp_line.handshake":  {unsafe.Offsetof(line.Handshake), 24},
		"tcp_line.begun":      {unsafe.Offsetof(line.RttBegun), 56},
		"tcp of a bucket":     {unsafe.Sizeof(FlowTcpBucket{}), 64 * uintptr(FlowWeftLimitsWEFT_WAYS)},
		"latency_key":         {unsafe.Sizeof(FlowLatencyKey{}), 24},
		"latency":             {unsafe.Sizeof(FlowLatency{}), 8 + 4*uintptr(FlowWeftLatencyWEFT_LATENCY_BUCKETS)},
		"link_place.class":    {unsafe.Offsetof(place.Class), 9},
		"link_place":          {unsafe.Sizeof(place), 64},
		"link_place.netns":    {unsafe.Offsetof(place.Netns), 4},
		"link_place.l2_len":   {unsafe.Offsetof(place.L2Len), 8},
		"link_place.seen":     {unsafe.Offsetof(place.Seen), 16},
		"point_rare":          {unsafe.Sizeof(rare), 256},
		"point_rare.gso":      {unsafe.Offsetof(rare.Gso), 240},
		"flow_control":        {unsafe.Sizeof(ctl), 32},
		"flow_control.read":   {unsafe.Offsetof(ctl.ReadJiffies), 16},
		"hash_key":            {unsafe.Sizeof(hk), 48},
		"hash_key.vlan":       {unsafe.Offsetof(hk.Vlan), 40},
		"hash_flow":           {unsafe.Sizeof(hf), 64},
		"hash_flow.cold":      {unsafe.Offsetof(hf.Cold), 32},
		"flow_config":         {unsafe.Sizeof(FlowFlowConfig{}), 80},
		"flow_config.netns":   {unsafe.Offsetof(FlowFlowConfig{}.Netns), 60},
		"drop_key":            {unsafe.Sizeof(dk), 64},
		"drop_key.key":        {unsafe.Sizeof(dk.Key), unsafe.Sizeof(key)},
		"drop_key.kind":       {unsafe.Offsetof(dk.Key.Kind), unsafe.Offsetof(key.Kind)},
		"drop_key.netns":      {unsafe.Offsetof(dk.Netns), 40},
		"drop_key.ifindex":    {unsafe.Offsetof(dk.Ifindex), 56},
		"drop_count":          {unsafe.Sizeof(dc), 96},
		"drop_count.packets":  {unsafe.Offsetof(dc.Packets), 64},
		"drop_count.last":     {unsafe.Offsetof(dc.Last), 88},
		"drop_seen":           {unsafe.Sizeof(DropDropSeen{}), 32},
		"drop_config":         {unsafe.Sizeof(DropDropConfig{}), 72},
		"socket_key":          {unsafe.Sizeof(SocketSocketKey{}), 48},
		"socket_key.key":      {unsafe.Sizeof(SocketSocketKey{}.Key), unsafe.Sizeof(key)},
		"socket_key.kind":     {unsafe.Offsetof(SocketSocketKey{}.Key.Kind), unsafe.Offsetof(key.Kind)},
		"socket_key.netns":    {unsafe.Offsetof(SocketSocketKey{}.Netns), 40},
		"socket_count":        {unsafe.Sizeof(SocketSocketCount{}), 72},
		"socket_count.events": {unsafe.Offsetof(SocketSocketCount{}.Events), 16},
		"socket_count.error":  {unsafe.Offsetof(SocketSocketCount{}.Error), 36},
		"socket_count.owner":  {unsafe.Offsetof(SocketSocketCount{}.Owner), 40},
		"socket_owner.comm":   {unsafe.Offsetof(SocketSocketOwner{}.Comm), 12},
		"socket_seen":         {unsafe.Sizeof(SocketSocketSeen{}), 32},
		"symbol":              {unsafe.Sizeof(DropSymbol{}), 128},
		"cold of a bucket":    {unsafe.Sizeof(FlowColdBucket{}), 32 * uintptr(FlowWeftLimitsWEFT_WAYS)},
		"cold of an evicted":  {unsafe.Sizeof(ev.Cold), unsafe.Sizeof(cold)},
		"cold of a hash flow": {unsafe.Sizeof(hf.Cold), unsafe.Sizeof(cold)},
	} {
		if c[0] != c[1] {
			t.Errorf("%s: got %d, want %d", name, c[0], c[1])
		}
	}
}

// TestObjectsAskForNothingNew holds the promise to Linux 5.15: no helper that is
// younger, no map type or flag that it lacks, and no kernel function but one that is
// weak, behind a branch that the loader removes where the kernel has none.
func TestObjectsAskForNothingNew(t *testing.T) {
	const youngest = 177 // bpf_get_func_arg_cnt and later came after 5.15
	for name, load := range map[string]func() (*ebpf.CollectionSpec, error){"flow": LoadFlow, "health": LoadHealth, "flow_hash": LoadFlowHash, "xdp": LoadXdp, "drop": LoadDrop, "socket": LoadSocket} {
		spec, err := load()
		if err != nil {
			t.Fatal(err)
		}
		for prog, p := range spec.Programs {
			for i, ins := range p.Instructions {
				if ins.IsBuiltinCall() && ins.Constant > youngest {
					t.Errorf("%s %s: instruction %d calls helper %d", name, prog, i, ins.Constant)
				}
				if ins.IsKfuncCall() && ins.Reference() != "bpf_rdonly_cast" {
					t.Errorf("%s %s: instruction %d calls the kernel function %q", name, prog, i, ins.Reference())
				}
			}
			if p.License != "Dual BSD/GPL" {
				t.Errorf("%s %s: license: got %q", name, prog, p.License)
			}
		}
		for m, s := range spec.Maps {
			switch s.Type {
			case ebpf.Array, ebpf.Hash, ebpf.LRUHash, ebpf.RingBuf, ebpf.ArrayOfMaps, ebpf.PerCPUArray:
			default:
				t.Errorf("%s: map %s is a %s", name, m, s.Type)
			}
		}
	}
}
