// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	tea "charm.land/bubbletea/v2"
	"github.com/spf13/cobra"

	"weft/exporter"
	"weft/flows"
)

// topModel is the screen. A ranking that comes from another request than the
// latest is not shown.
type topModel struct {
	by     flows.TopBy
	order  flows.TopOrder
	query  exporter.TopQuery
	asked  int                          // number of the latest request
	ask    func(exporter.TopQuery, int) // makes it; the one before ends
	last   *flows.Ranking               // nil: none yet
	held   bool
	said   string // by the client: the agent is away
	err    error  // why it ended
	height int
	width  int
	colour bool
}

// What comes from outside.
type (
	rankingMsg struct {
		asked int
		r     flows.Ranking
	}
	saidMsg  string
	endedMsg struct{ err error }
)

// Init asks for the first ranking.
func (m *topModel) Init() tea.Cmd {
	m.change()
	return nil
}

// change asks anew, with what the user chose.
func (m *topModel) change() {
	m.asked++
	m.last, m.said = nil, ""
	m.query.By, m.query.Order = string(m.by), string(m.order)
	m.ask(m.query, m.asked)
}

// Update obeys keys and takes what comes.
func (m *topModel) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		m.width, m.height = msg.Width, msg.Height
	case tea.KeyPressMsg:
		return m, m.key(msg.String())
	case rankingMsg:
		if msg.asked == m.asked && !m.held {
			m.last, m.said = &msg.r, ""
		}
	case saidMsg:
		m.said = string(msg)
	case endedMsg:
		m.err = msg.err
		return m, tea.Quit
	}
	return m, nil
}

func (m *topModel) key(k string) tea.Cmd {
	switch k {
	case "q", "esc", "ctrl+c":
		return tea.Quit
	case "p", "space":
		m.held = !m.held
	case "tab", "right", "shift+tab", "left":
		m.by = step(flows.TopBys, m.by, k == "tab" || k == "right")
		if m.by == flows.ByReason {
			m.order = "drops"
		} else if m.order == "drops" {
			m.order = "bytes"
		}
		m.change()
	case "s", "S":
		m.order = step(flows.TopOrders, m.order, k == "s")
		m.change()
	}
	return nil
}

// step is what follows now in all, around the end.
func step[T comparable](all []T, now T, forth bool) T {
	by := len(all) - 1
	if forth {
		by = 1
	}
	return all[(slices.Index(all, now)+by)%len(all)]
}

// View is a title, the table as far as it fits, and the keys.
func (m *topModel) View() tea.View {
	title := fmt.Sprintf("top %s by %s: waiting for the agent's next drains", m.by, m.order)
	var body strings.Builder
	if m.last != nil {
		title = rankingTitle(m.last, m.by, m.order)
		if err := writeRows(&body, m.last, m.by); err != nil { // a Builder does not fail
			m.err = err
		}
	}
	if m.held {
		title = "HELD  " + title
	}
	foot := "Tab ranking   s sort   p hold   q quit"
	if m.said != "" {
		foot = m.said
	}
	lines := strings.Split(strings.TrimRight(body.String(), "\n"), "\n")
	if room := max(m.height-3, 1); m.height > 0 && len(lines) > room {
		lines = lines[:room]
	}
	all := append(append([]string{title, ""}, lines...), foot)
	for i := range all {
		if r := []rune(all[i]); m.width > 0 && len(r) > m.width {
			all[i] = string(r[:m.width])
		}
	}
	if m.colour {
		all[0] = "\x1b[1m" + all[0] + "\x1b[0m"
		all[len(all)-1] = "\x1b[2m" + all[len(all)-1] + "\x1b[0m"
	}
	v := tea.NewView(strings.Join(all, "\n"))
	v.AltScreen = true
	return v
}

// topScreen runs the screen until the user quits or the agent refuses.
func (g *global) topScreen(cmd *cobra.Command, q exporter.TopQuery) error {
	by, order, err := flows.ParseTop(q.By, q.Order)
	if err != nil {
		return usage(err)
	}
	ctx, cancel := context.WithCancel(cmd.Context())
	defer cancel()
	if !cmd.Flags().Changed("rows") {
		q.Rows = 100 // as many as a screen may have room for
	}
	m := &topModel{by: by, order: order, query: q, colour: g.colour()}
	screen := tea.NewProgram(m, tea.WithContext(ctx), tea.WithOutput(g.stdout))
	g.say = func(line string) { screen.Send(saidMsg(line)) }
	return g.ask(cmd, func(c *exporter.Client) error {
		stop := func() {}
		m.ask = func(q exporter.TopQuery, asked int) {
			stop()
			var one context.Context
			one, stop = context.WithCancel(ctx)
			go func() { // ends with one, or with the client
				for r, err := range c.Top(one, q) {
					if err != nil {
						screen.Send(endedMsg{err})
						return
					}
					screen.Send(rankingMsg{asked, r})
				}
			}()
		}
		_, err := screen.Run()
		cancel()
		if errors.Is(err, tea.ErrProgramKilled) && cmd.Context().Err() != nil {
			err = nil // Ctrl-C from outside
		}
		return errors.Join(err, m.err)
	})
}
