// Command dockerignore copies what .dockerignore admits of a directory into another, so that an image's build can be tried without an engine:
//
//	dockerignore DIRECTORY COPY
//
// The patterns are read by the library that docker reads them with.
package main

import (
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: dockerignore DIRECTORY COPY")
		os.Exit(2)
	}
	if err := admit(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "dockerignore:", err)
		os.Exit(1)
	}
}

// admit copies what is admitted of root into target.
func admit(root, target string) error {
	patterns, err := read(filepath.Join(root, ".dockerignore"))
	if err != nil {
		return err
	}
	tree := os.DirFS(root)
	return fs.WalkDir(tree, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || name == "." {
			return err
		}
		ignored, err := patterns.MatchesOrParentMatches(name)
		switch {
		case err != nil:
			return fmt.Errorf("matching %s: %w", name, err)
		case ignored && entry.IsDir() && !reaches(patterns, name):
			return fs.SkipDir
		case ignored || !entry.Type().IsRegular():
			return nil
		}
		return copyFile(tree, name, filepath.Join(target, filepath.FromSlash(name)))
	})
}

func read(file string) (*patternmatcher.PatternMatcher, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	lines, err := ignorefile.ReadAll(f)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", file, err)
	}
	patterns, err := patternmatcher.New(lines)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", file, err)
	}
	return patterns, nil
}

// reaches says whether something below an ignored directory may be admitted all the same.
func reaches(patterns *patternmatcher.PatternMatcher, dir string) bool {
	for _, p := range patterns.Patterns() {
		if p.Exclusion() && strings.HasPrefix(path.Clean(filepath.ToSlash(p.String()))+"/", dir+"/") {
			return true
		}
	}
	return false
}

func copyFile(tree fs.FS, name, target string) error {
	data, err := fs.ReadFile(tree, name)
	if err == nil {
		err = os.MkdirAll(filepath.Dir(target), 0o755)
	}
	if err == nil {
		err = os.WriteFile(target, data, 0o644)
	}
	return err
}
