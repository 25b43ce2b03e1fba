//go:build linux

package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// process is a row of the process table.
type process struct {
	pid, parent int
	state       byte
}

// isStopped reports whether a signal has stopped the process.
func (p process) isStopped() bool { return p.state == 'T' }

// descendants returns the processes below one, without it. Zombies are left out.
func descendants(of int) ([]process, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("reading the process table: %w", err)
	}
	children := map[int][]process{}
	for _, e := range entries {
		if p, ok := readProcess(e.Name()); ok {
			children[p.parent] = append(children[p.parent], p)
		}
	}
	var all []process
	for parents := []int{of}; len(parents) > 0; parents = parents[1:] {
		for _, p := range children[parents[0]] {
			parents = append(parents, p.pid)
			if p.state != 'Z' {
				all = append(all, p)
			}
		}
	}
	return all, nil
}

// readProcess reads an entry of /proc. It returns false if the entry is not a process, or one that has ended.
func readProcess(name string) (process, bool) {
	pid, err := strconv.Atoi(name)
	if err != nil {
		return process{}, false
	}
	stat, err := os.ReadFile("/proc/" + name + "/stat")
	if err != nil {
		return process{}, false
	}
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:])) // the name in parentheses may contain anything
	if len(fields) < 2 {
		return process{}, false
	}
	parent, err := strconv.Atoi(fields[1])
	return process{pid: pid, parent: parent, state: fields[0][0]}, err == nil
}

// halt stops all descendants and returns those that it stopped. It looks until it finds no more, because a process may start another one before it is stopped itself.
// Processes that were stopped before are left alone: they must not be resumed.
func halt(of int) (halted []int, err error) {
	signaled := map[int]bool{}
	for {
		all, err := descendants(of)
		if err != nil {
			resume(halted)
			return nil, err
		}
		found := false
		for _, p := range all {
			if signaled[p.pid] || p.isStopped() {
				continue
			}
			signaled[p.pid], found = true, true
			if syscall.Kill(p.pid, syscall.SIGSTOP) == nil { // it may have ended just now
				halted = append(halted, p.pid)
			}
		}
		if !found {
			return halted, nil
		}
	}
}

func resume(halted []int) {
	for _, pid := range halted {
		_ = syscall.Kill(pid, syscall.SIGCONT) // one that was killed meanwhile has ended
	}
}
