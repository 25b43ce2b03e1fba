// Package goods is what orders and inventory call the same: articles, and how many of them.
package goods

import "fmt"

// Line is so many pieces of one article.
type Line struct {
	SKU      string `json:"sku"`
	Quantity int64  `json:"quantity"`
}

const (
	maxLines    = 100
	maxQuantity = 1_000_000
)

// Check says what is wrong with the lines of an order.
func Check(lines []Line) error {
	if len(lines) == 0 || len(lines) > maxLines {
		return fmt.Errorf("lines: 1 to %d are needed", maxLines)
	}
	seen := map[string]bool{}
	for i, l := range lines {
		switch {
		case l.SKU == "" || len(l.SKU) > 64:
			return fmt.Errorf("lines[%d].sku: 1 to 64 bytes are needed", i)
		case seen[l.SKU]:
			return fmt.Errorf("lines[%d].sku: %q is there twice", i, l.SKU)
		case l.Quantity < 1 || l.Quantity > maxQuantity:
			return fmt.Errorf("lines[%d].quantity: 1 to %d is needed", i, maxQuantity)
		}
		seen[l.SKU] = true
	}
	return nil
}
