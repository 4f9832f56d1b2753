// SPDX-License-Identifier: Apache-2.0

// Demo makes the traffic of `make demo`: a server that answers HTTP and UDP, and
// clients that fetch pages of several sizes, ask over UDP and hold one long
// download. It has no other use.
//
//	demo serve
//	demo talk SERVER-ADDRESS SECONDS
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"
)

func main() {
	err := errors.New("usage: demo serve | demo talk SERVER-ADDRESS SECONDS")
	switch {
	case len(os.Args) == 2 && os.Args[1] == "serve":
		err = serve()
	case len(os.Args) == 4 && os.Args[1] == "talk":
		var seconds int
		if seconds, err = strconv.Atoi(os.Args[3]); err == nil {
			err = talk(os.Args[2], time.Duration(seconds)*time.Second)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// serve answers until it is killed: pages of ?n= bytes on port 80, echo on UDP port 53.
func serve() error {
	udp, err := net.ListenPacket("udp", ":53")
	if err != nil {
		return err
	}
	go func() {
		buf := make([]byte, 2048)
		for {
			n, from, err := udp.ReadFrom(buf)
			if err != nil {
				return
			}
			if _, err := udp.WriteTo(buf[:n], from); err != nil {
				fmt.Fprintln(os.Stderr, "demo: answer", from, err)
			}
		}
	}()
	page := func(w http.ResponseWriter, r *http.Request) {
		n, err := strconv.ParseInt(r.FormValue("n"), 10, 32)
		if err != nil {
			http.Error(w, "n must be a number of bytes", http.StatusBadRequest)
			return
		}
		chunk := make([]byte, 16<<10)
		for n > 0 {
			w, err := w.Write(chunk[:min(n, int64(len(chunk)))])
			if err != nil {
				return // the client has left
			}
			n -= int64(w)
		}
	}
	srv := http.Server{Addr: ":80", Handler: http.HandlerFunc(page), ReadHeaderTimeout: 5 * time.Second}
	return srv.ListenAndServe()
}

// talk makes a client's traffic for d: every 400 ms a page on a connection of
// its own, every second a UDP question, and throughout a slow download.
func talk(server string, d time.Duration) error {
	end := time.Now().Add(d)
	ctx, cancel := context.WithDeadline(context.Background(), end)
	defer cancel()
	go trickle(ctx, server)
	pages := time.NewTicker(400 * time.Millisecond)
	questions := time.NewTicker(time.Second)
	for size := int64(1000); ; size = size*7%500_000 + 200 {
		select {
		case <-ctx.Done():
			return nil
		case <-pages.C:
			if err := fetch(ctx, server, size); err != nil && time.Now().Before(end) {
				return err
			}
		case <-questions.C:
			if err := ask(ctx, server); err != nil && time.Now().Before(end) { // a socket may know before ctx
				return err
			}
		}
	}
}

// fetch gets one page of n bytes on a new connection.
func fetch(ctx context.Context, server string, n int64) error {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://%s/?n=%d", net.JoinHostPort(server, "80"), n), nil)
	if err != nil {
		return err
	}
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	_, err = io.Copy(io.Discard, res.Body)
	return err
}

// trickle reads a large page slowly until ctx ends, so that one connection is always open.
func trickle(ctx context.Context, server string) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(server, "80")+"/?n=100000000", nil)
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		return
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		return
	}
	defer res.Body.Close()
	for tick := time.NewTicker(100 * time.Millisecond); ; <-tick.C {
		if _, err := io.CopyN(io.Discard, res.Body, 64<<10); err != nil {
			return // ctx ended
		}
	}
}

// ask sends one datagram and waits for its echo.
func ask(ctx context.Context, server string) error {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "udp", net.JoinHostPort(server, "53"))
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return err
	}
	if _, err := conn.Write(make([]byte, 40)); err != nil {
		return err
	}
	_, err = conn.Read(make([]byte, 64))
	return err
}
