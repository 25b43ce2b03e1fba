-- What each order has left behind at the services: goods held back and gone, money promised and taken, labels, invoices. One statement is one snapshot: all services are
-- seen at the same moment.
WITH known AS (
    SELECT id AS order_id FROM orders.orders
    UNION SELECT order_id FROM inventory.reservations
    UNION SELECT order_id FROM payments.authorizations
    UNION SELECT order_id FROM shipping.labels
    UNION SELECT order_id FROM invoicing.documents
),
goods AS (
    SELECT r.order_id,
           sum(l.quantity) FILTER (WHERE r.state = 'reserved')  AS held,
           sum(l.quantity) FILTER (WHERE r.state = 'committed') AS gone
    FROM inventory.reservations r
    JOIN inventory.lines l ON l.reservation = r.id
    GROUP BY r.order_id
),
money AS (
    SELECT a.order_id,
           sum(CASE WHEN a.voided_at IS NULL AND c.amount IS NULL THEN a.amount ELSE 0 END) AS promised,
           sum(coalesce(c.amount, 0) - coalesce(c.refunded, 0))                             AS taken,
           string_agg(DISTINCT a.currency, '+')                                             AS currency
    FROM payments.authorizations a
    LEFT JOIN (
        SELECT c.authorization_id, sum(c.amount) AS amount, sum(r.amount) AS refunded
        FROM payments.captures c
        LEFT JOIN (SELECT capture, sum(amount) AS amount FROM payments.refunds GROUP BY capture) r ON r.capture = c.id
        GROUP BY c.authorization_id
    ) c ON c.authorization_id = a.id
    GROUP BY a.order_id
),
labels AS (
    SELECT order_id, count(*) AS valid, count(picked_up_at) AS picked_up
    FROM shipping.labels
    WHERE voided_at IS NULL
    GROUP BY order_id
),
invoices AS (
    SELECT order_id, sum(CASE kind WHEN 'invoice' THEN amount ELSE -amount END) AS net
    FROM invoicing.documents
    GROUP BY order_id
)
SELECT known.order_id                         AS "order",
       coalesce(o.status, 'none')             AS status,
       coalesce(goods.held, 0)::bigint        AS held,
       coalesce(goods.gone, 0)::bigint        AS gone,
       coalesce(money.promised, 0)::text      AS promised,
       coalesce(money.taken, 0)::text         AS taken,
       coalesce(money.currency, '')           AS currency,
       coalesce(labels.valid, 0)              AS labels,
       coalesce(labels.picked_up, 0)          AS picked_up,
       coalesce(invoices.net, 0)::text        AS invoiced
FROM known
LEFT JOIN orders.orders o ON o.id = known.order_id
LEFT JOIN goods ON goods.order_id = known.order_id
LEFT JOIN money ON money.order_id = known.order_id
LEFT JOIN labels ON labels.order_id = known.order_id
LEFT JOIN invoices ON invoices.order_id = known.order_id
ORDER BY o.created_at, known.order_id
