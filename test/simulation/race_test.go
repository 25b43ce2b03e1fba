//go:build race

package simulation

// defaultSeeds is small under the race detector, which slows a world down many times. The suite makes its thousands without it.
const defaultSeeds = 40
