// Package cqrs has the three buses: commands ask to change, queries ask to read, events tell what happened. A bus is a value that somebody makes, fills at start and hands on;
// there is no global one. Start reading at HandleCommand and Send; queries are the same, and read models only. Handlers of events are in On; they are called after the commit within the
// process (Local), which forgets at a crash, or as a durable Subscription, which does not.
package cqrs
