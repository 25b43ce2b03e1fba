// Package turns has a queue of items in groups that take turns, so that a group with many items does not
// hold up one with few. It is deficit round robin (Shreedhar and Varghese, 1995) with items of equal cost.
package turns

import "container/list"

// Queue holds items in groups. Each Pop takes an item of the group whose last turn was longest ago. Within
// a group, urgent items come first, and items of one urgency in the order in which they were pushed. The
// zero value is ready to use. A Queue is not safe for concurrent use.
type Queue[T any] struct {
	groups map[string]*group[T]
	order  list.List // the groups, the next one first
	length int
}

// group has the items of one group: those that are not urgent, and those that are.
type group[T any] struct {
	name    string
	items   [2]list.List
	element *list.Element // in Queue.order
}

// Item is an item in a queue.
type Item[T any] struct {
	Value   T
	urgent  int
	element *list.Element // nil once it has left the queue
	group   *group[T]
}

// Len returns the number of items.
func (q *Queue[T]) Len() int { return q.length }

// Push adds an item to a group.
func (q *Queue[T]) Push(name string, urgent bool, value T) *Item[T] {
	g := q.groups[name]
	if g == nil {
		if q.groups == nil {
			q.groups = map[string]*group[T]{}
		}
		g = &group[T]{name: name}
		g.element = q.order.PushBack(g)
		q.groups[name] = g
	}
	item := &Item[T]{Value: value, group: g}
	if urgent {
		item.urgent = 1
	}
	item.element = g.items[item.urgent].PushBack(item)
	q.length++
	return item
}

// Hasten makes an item that waits urgent. It does nothing if the item is urgent or has left the queue.
func (q *Queue[T]) Hasten(item *Item[T]) {
	if item.element == nil || item.urgent == 1 {
		return
	}
	item.group.items[0].Remove(item.element)
	item.urgent, item.element = 1, item.group.items[1].PushBack(item)
}

// Pop removes the next item of the first group, in the order of their turns, that may have one. It reports
// false if there is none. A nil function admits every group.
func (q *Queue[T]) Pop(admits func(group string) bool) (value T, ok bool) {
	for e := q.order.Front(); e != nil; e = e.Next() {
		g := e.Value.(*group[T])
		if admits != nil && !admits(g.name) {
			continue
		}
		items := &g.items[1]
		if items.Len() == 0 {
			items = &g.items[0]
		}
		item := items.Remove(items.Front()).(*Item[T])
		item.element = nil
		q.length--
		q.order.MoveToBack(e)
		if g.items[0].Len()+g.items[1].Len() == 0 {
			q.order.Remove(e)
			delete(q.groups, g.name)
		}
		return item.Value, true
	}
	return value, false
}
