// SPDX-License-Identifier: Apache-2.0

package exporter

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"

	"weft/exporter/api"
	"weft/flows"
)

// DefaultSocket is where the agent listens and flowctl asks.
const DefaultSocket = "/run/weft/weft.sock"

// lastWords is how long [Server.Close] waits for readers that are behind.
const lastWords = time.Second

// Server is the local API over a unix socket.
type Server struct {
	store  *Store
	status func() *api.StatusResponse
	lis    *net.UnixListener
	grpc   *grpc.Server
	stop   chan struct{} // closed by Close: followers read to the end and no further
	once   sync.Once
	done   chan struct{}
	err    error // of serving, once done is closed

	topology atomic.Pointer[func() *api.TopologyResponse] // nil: not read yet

	api.UnimplementedWeftServer
}

// ListenSocket serves store and what status says on the unix socket at path
// (empty: [DefaultSocket]). The folder is made if there is none. The socket's
// mode is 0600, or 0660 with group (a name or a number) as its group. The socket
// of an agent that died is replaced; that of a living one, a file that is no
// socket and an unknown group are errors that name the mend.
func ListenSocket(path, group string, store *Store, status func() *api.StatusResponse) (*Server, error) {
	if path == "" {
		path = DefaultSocket
	}
	lis, err := listenUnix(path, group)
	if err != nil {
		return nil, err
	}
	s := &Server{
		store: store, status: status, lis: lis, stop: make(chan struct{}), done: make(chan struct{}),
		grpc: grpc.NewServer(grpc.WaitForHandlers(true), grpc.MaxConcurrentStreams(64),
			grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: pingEvery / 2})),
	}
	api.RegisterWeftServer(s.grpc, s)
	go func() {
		defer close(s.done)
		if err := s.grpc.Serve(lis); !errors.Is(err, grpc.ErrServerStopped) { // Close came before it
			s.err = err
		}
	}()
	return s, nil
}

// Close lets followers read to the end of the store, those that are quick
// enough, ends every request, removes the socket and returns when all of the
// server's goroutines are gone. The error is the one that ended serving early.
func (s *Server) Close() error {
	s.once.Do(func() { close(s.stop) })
	slow := time.AfterFunc(lastWords, s.grpc.Stop)
	s.grpc.GracefulStop()
	slow.Stop()
	<-s.done
	return s.err
}

// Observe streams records; see [Store.Observe].
func (s *Server) Observe(req *api.ObserveRequest, stream grpc.ServerStreamingServer[api.ObserveResponse]) error {
	q := Query{Last: int(req.Last), Since: time.Duration(req.SinceNs), Follow: req.Follow, stop: s.stop}
	q.after = Cursor{req.GetAfter().GetStore(), req.GetAfter().GetNext()}
	q.Terms = termsFromWire(req.Terms)
	if _, err := flows.ParseFilter(q.Terms); err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	return s.store.Observe(stream.Context(), q, func(records []flows.Record, lost uint64, next Cursor) error {
		m := &api.ObserveResponse{Lost: lost, Next: &api.Cursor{Store: next.Store, Next: next.Next}, Records: make([]*api.Record, len(records))}
		for i := range records {
			m.Records[i] = &api.Record{}
			toWire(m.Records[i], &records[i])
		}
		return stream.Send(m)
	})
}

// Ledger streams the latest ledger, and with follow every later one that this
// reader is quick enough for. Before the first ledger it waits for it.
func (s *Server) Ledger(req *api.LedgerRequest, stream grpc.ServerStreamingServer[api.LedgerResponse]) error {
	var sent flows.Ledger
	for last := false; ; {
		l, changed := s.store.Ledger()
		if !l.At.Equal(sent.At) { // not After: the wall clock may have been set back
			if err := stream.Send(&api.LedgerResponse{Ledger: ledgerToWire(&l)}); err != nil {
				return err
			}
			sent, last = l, last || !req.Follow
		}
		if last {
			return nil
		}
		select {
		case <-changed:
		case <-s.stop:
			last = true
		case <-stream.Context().Done():
			return nil
		}
	}
}

// Status answers with what the agent says of itself.
func (s *Server) Status(context.Context, *api.StatusRequest) (*api.StatusResponse, error) {
	m := s.status()
	validText(m.ProtoReflect())
	return m, nil
}

// validText makes every text in m valid UTF-8, which protobuf insists on and the
// names of devices, namespaces and remote errors may not be.
func validText(m protoreflect.Message) {
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.IsMap(): // only reasons, which are ours
		case f.IsList() && f.Kind() == protoreflect.MessageKind:
			for i := range v.List().Len() {
				validText(v.List().Get(i).Message())
			}
		case f.IsList() && f.Kind() == protoreflect.StringKind:
			for i := range v.List().Len() {
				v.List().Set(i, validString(v.List().Get(i)))
			}
		case f.IsList(): // numbers and bytes
		case f.Kind() == protoreflect.MessageKind:
			validText(v.Message())
		case f.Kind() == protoreflect.StringKind:
			m.Set(f, validString(v))
		}
		return true
	})
}

func validString(v protoreflect.Value) protoreflect.Value {
	return protoreflect.ValueOfString(strings.ToValidUTF8(v.String(), "\uFFFD"))
}

func listenUnix(path, group string) (*net.UnixListener, error) {
	gid, mode := -1, os.FileMode(0o600)
	if group != "" {
		var err error
		if gid, err = groupID(group); err != nil {
			return nil, err
		}
		mode = 0o660
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("make folder of listen.socket %s: %w%s", path, err, mend(err))
	}
	if err := clearSocket(path); err != nil {
		return nil, err
	}
	// Nobody may connect between bind and chmod. The mask is the process's, but
	// all it can do to a file made elsewhere at this instant is to close it more.
	mask := syscall.Umask(0o177)
	lis, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	syscall.Umask(mask)
	if err != nil {
		return nil, fmt.Errorf("listen on listen.socket %s: %w%s", path, err, mend(err))
	}
	if gid >= 0 {
		err = os.Chown(path, -1, gid)
	}
	if err = errors.Join(err, os.Chmod(path, mode)); err != nil {
		return nil, errors.Join(fmt.Errorf("open listen.socket %s to its group: %w", path, err), lis.Close())
	}
	return lis, nil
}

// mend is what can be done about a path that takes no socket for err.
func mend(err error) string {
	if errors.Is(err, fs.ErrPermission) {
		return ": run as root, or set listen.socket to a path of your own"
	}
	return ": set listen.socket to a path in a folder that can be written"
}

// clearSocket removes the socket of an agent that is gone.
func clearSocket(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look at listen.socket %s: %w", path, err)
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("listen on listen.socket %s: there is a file that is no socket: remove it or choose another path", path)
	}
	conn, err := net.Dial("unix", path)
	if err == nil {
		return errors.Join(fmt.Errorf("another weftd is listening on %s: stop it or set another listen.socket", path), conn.Close())
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("look for another weftd on listen.socket %s: %w%s", path, err, mend(err))
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove stale listen.socket %s: %w%s", path, err, mend(err))
	}
	return nil
}

func groupID(group string) (int, error) {
	if id, err := strconv.Atoi(group); err == nil && id >= 0 {
		return id, nil
	}
	g, err := user.LookupGroup(group)
	if err != nil {
		return 0, fmt.Errorf("find listen.group %q: %w", group, err)
	}
	return strconv.Atoi(g.Gid)
}
