-- The balance: what does not add up, from the services' own tables alone. No row means that all of it does.
--
-- At every moment, whatever is under way:
--   * what was delivered of an article is available, held back, or gone;
--   * no more is captured than was authorized, no more refunded than captured, and nothing captured is voided;
--   * no label is voided that was picked up;
--   * the numbers of invoices and of credit notes have no gaps, and a credit note is for an invoice, once, over the same amount.
-- And when all orders have ended:
--   * a fulfilled order has everything exactly once: its goods gone, its total captured and invoiced, one label, picked up;
--   * any other order has nothing left.
--
-- One statement is one snapshot: all services are seen at the same moment.
WITH reserved AS (
    SELECT r.order_id, r.state, l.sku, sum(l.quantity)::bigint AS quantity
    FROM inventory.reservations r
    JOIN inventory.lines l ON l.reservation = r.id
    WHERE r.state IN ('reserved', 'committed')
    GROUP BY r.order_id, r.state, l.sku
),
captured AS (
    SELECT c.id, c.authorization_id, c.amount, coalesce(sum(r.amount), 0) AS refunded
    FROM payments.captures c
    LEFT JOIN payments.refunds r ON r.capture = c.id
    GROUP BY c.id
),
authorized AS (
    SELECT a.id, a.order_id, a.amount, a.currency, a.voided_at IS NOT NULL AS voided,
           coalesce(sum(c.amount), 0) AS captured, coalesce(sum(c.refunded), 0) AS refunded
    FROM payments.authorizations a
    LEFT JOIN captured c ON c.authorization_id = a.id
    GROUP BY a.id
),
-- What is left of each order.
known AS (
    SELECT id AS order_id FROM orders.orders
    UNION SELECT order_id FROM inventory.reservations
    UNION SELECT order_id FROM payments.authorizations
    UNION SELECT order_id FROM shipping.labels
    UNION SELECT order_id FROM invoicing.documents
),
ordered AS (SELECT order_id, jsonb_object_agg(sku, quantity) AS lines FROM orders.lines GROUP BY order_id),
held AS (SELECT order_id, sum(quantity) AS pieces FROM reserved WHERE state = 'reserved' GROUP BY order_id),
gone AS (SELECT order_id, jsonb_object_agg(sku, quantity) AS lines FROM reserved WHERE state = 'committed' GROUP BY order_id),
money AS (
    SELECT order_id, sum(captured - refunded) AS taken, string_agg(DISTINCT currency, '+') AS currency,
           sum(CASE WHEN voided OR captured > 0 THEN 0 ELSE amount END) AS promised
    FROM authorized GROUP BY order_id
),
labels AS (
    SELECT order_id, count(*) AS valid, count(picked_up_at) AS picked_up FROM shipping.labels WHERE voided_at IS NULL GROUP BY order_id
),
invoiced AS (
    SELECT order_id, sum(CASE kind WHEN 'invoice' THEN amount ELSE -amount END) AS net, string_agg(DISTINCT currency, '+') AS currency
    FROM invoicing.documents GROUP BY order_id
),
left_behind AS (
    SELECT k.order_id, coalesce(o.status, 'unknown') AS status, o.amount, o.currency, ordered.lines AS ordered,
           coalesce(held.pieces, 0) AS held, gone.lines AS gone,
           coalesce(money.promised, 0) AS promised, coalesce(money.taken, 0) AS taken, money.currency AS taken_in,
           coalesce(labels.valid, 0) AS labels, coalesce(labels.picked_up, 0) AS picked_up,
           coalesce(invoiced.net, 0) AS invoiced, invoiced.currency AS invoiced_in
    FROM known k
    LEFT JOIN orders.orders o ON o.id = k.order_id
    LEFT JOIN ordered USING (order_id)
    LEFT JOIN held USING (order_id)
    LEFT JOIN gone USING (order_id)
    LEFT JOIN money USING (order_id)
    LEFT JOIN labels USING (order_id)
    LEFT JOIN invoiced USING (order_id)
)
SELECT kind, subject, problem FROM (
    SELECT 'stock' AS kind, s.sku AS subject,
           format('%s delivered, but %s available, %s held and %s gone', s.delivered, s.available, coalesce(q.held, 0), coalesce(q.gone, 0)) AS problem
    FROM inventory.stock s
    LEFT JOIN (
        SELECT sku, sum(quantity) FILTER (WHERE state = 'reserved') AS held, sum(quantity) FILTER (WHERE state = 'committed') AS gone
        FROM reserved GROUP BY sku
    ) q ON q.sku = s.sku
    WHERE s.delivered <> s.available + coalesce(q.held, 0) + coalesce(q.gone, 0)

    UNION ALL SELECT 'money', order_id, format('%s captured of %s authorized', captured, amount) FROM authorized WHERE captured > amount
    UNION ALL SELECT 'money', order_id, format('%s captured and not refunded, of an authorization that was voided', captured - refunded) FROM authorized
    WHERE voided AND captured <> refunded
    UNION ALL SELECT 'money', a.order_id, format('%s refunded of %s captured', c.refunded, c.amount) FROM captured c
    JOIN payments.authorizations a ON a.id = c.authorization_id WHERE c.refunded > c.amount

    UNION ALL SELECT 'labels', order_id, 'a label was voided whose parcel was picked up' FROM shipping.labels
    WHERE voided_at IS NOT NULL AND picked_up_at IS NOT NULL

    UNION ALL SELECT 'invoices', n.kind, format('the last number is %s, there are %s from %s to %s', n.last, count(d.number), min(d.number), max(d.number))
    FROM invoicing.numbers n LEFT JOIN invoicing.documents d ON d.kind = n.kind
    GROUP BY n.kind, n.last HAVING count(d.number) <> n.last OR coalesce(max(d.number), 0) <> n.last
    UNION ALL SELECT 'invoices', c.order_id, format('credit note %s credits no invoice of that order and amount', c.number)
    FROM invoicing.documents c
    WHERE c.kind = 'credit note' AND NOT EXISTS (
        SELECT FROM invoicing.documents i
        WHERE i.kind = 'invoice' AND i.number = c.credits AND i.order_id = c.order_id AND i.amount = c.amount AND i.currency = c.currency
    )
    UNION ALL SELECT 'invoices', min(order_id), format('invoice %s was credited %s times', credits, count(*))
    FROM invoicing.documents WHERE kind = 'credit note' GROUP BY credits HAVING count(*) > 1

    UNION ALL SELECT 'orders', order_id, format('neither fulfilled nor undone: it is %s', status) FROM left_behind
    WHERE status NOT IN ('fulfilled', 'cancelled', 'unknown')
    UNION ALL SELECT 'orders', o.order_id, format('%s, but %s', o.status, p.problem)
    FROM left_behind o
    CROSS JOIN LATERAL (VALUES
        (o.held <> 0, format('%s pieces are held', o.held)),
        (o.promised <> 0, format('%s are still authorized', o.promised)),
        (o.status = 'fulfilled' AND o.gone IS DISTINCT FROM o.ordered, format('what is gone is %s and not %s', o.gone, o.ordered)),
        (o.status = 'fulfilled' AND (o.taken <> o.amount OR o.taken_in IS DISTINCT FROM o.currency), format('%s %s captured, not %s %s', o.taken, o.taken_in, o.amount, o.currency)),
        (o.status = 'fulfilled' AND (o.labels <> 1 OR o.picked_up <> 1), format('it has %s labels, %s of them picked up', o.labels, o.picked_up)),
        (o.status = 'fulfilled' AND (o.invoiced <> o.amount OR o.invoiced_in IS DISTINCT FROM o.currency), format('%s %s invoiced, not %s %s', o.invoiced, o.invoiced_in, o.amount, o.currency)),
        (o.status <> 'fulfilled' AND o.gone IS NOT NULL, format('%s are gone', o.gone)),
        (o.status <> 'fulfilled' AND o.taken <> 0, format('%s %s are captured', o.taken, o.taken_in)),
        (o.status <> 'fulfilled' AND o.labels <> 0, format('%s labels are valid', o.labels)),
        (o.status <> 'fulfilled' AND o.invoiced <> 0, format('%s %s are invoiced', o.invoiced, o.invoiced_in))
    ) AS p (wrong, problem)
    WHERE p.wrong AND o.status IN ('fulfilled', 'cancelled', 'unknown')
) differences
ORDER BY kind, subject, problem
