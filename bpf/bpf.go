// SPDX-License-Identifier: Apache-2.0

// Package bpf owns the C programs and what crosses to Go: the generated loaders
// and types of include/abi.h. One object per hook family; the objects are
// committed, so that users need no clang. Policy, names and strings live
// elsewhere.
package bpf

//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -cflags "-O2 -g -Wall -Wextra -Wno-unused-parameter -Werror -mcpu=v3 -idirafter /usr/include/x86_64-linux-gnu" -target bpfel -go-package bpf -type flow_key -type flow_slot -type flow_cold -type cold_bucket -type flow_evicted -type link_place -type point_rare -type flow_control -type dns_packet -type dns_seen -type weft_hook -type weft_skip -type weft_kind -type weft_limits -type weft_option -type weft_measure -type weft_class -type weft_latency -type weft_tcp_options -type latency_key -type latency -type tcp_line -type tcp_bucket -type tcp_seen -type tcp_conv Flow flow.bpf.c
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -cflags "-O2 -g -Wall -Wextra -Wno-unused-parameter -Werror -mcpu=v3 -idirafter /usr/include/x86_64-linux-gnu" -target bpfel -go-package bpf -no-global-types Health health.bpf.c
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -cflags "-O2 -g -Wall -Wextra -Wno-unused-parameter -Werror -mcpu=v3 -idirafter /usr/include/x86_64-linux-gnu" -target bpfel -go-package bpf -no-global-types -type hash_key -type hash_flow FlowHash flow_hash.bpf.c
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -cflags "-O2 -g -Wall -Wextra -Wno-unused-parameter -Werror -mcpu=v3 -idirafter /usr/include/x86_64-linux-gnu" -target bpfel -go-package bpf -no-global-types Xdp xdp.bpf.c
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -cflags "-O2 -g -Wall -Wextra -Wno-unused-parameter -Werror -mcpu=v3 -idirafter /usr/include/x86_64-linux-gnu" -output-suffix _test -target bpfel -go-package bpf -no-global-types Bucket bucket.bpf.c
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -cflags "-O2 -g -Wall -Wextra -Wno-unused-parameter -Werror -mcpu=v3 -idirafter /usr/include/x86_64-linux-gnu" -target bpfel -go-package bpf -no-global-types -type drop_key -type drop_count -type drop_seen -type drop_config -type symbol -type weft_drop -type weft_drop_kind Drop drop.bpf.c
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -cflags "-O2 -g -Wall -Wextra -Wno-unused-parameter -Werror -mcpu=v3 -idirafter /usr/include/x86_64-linux-gnu" -target bpfel -go-package bpf -no-global-types -type socket_key -type socket_owner -type socket_state -type socket_count -type socket_seen -type socket_config -type weft_socket Socket socket.bpf.c
