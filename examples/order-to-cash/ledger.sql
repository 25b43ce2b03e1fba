-- What each order has left behind at the four services, and what is wrong with it.
--
-- A confirmed order has everything exactly once: the stock that was ordered is reserved, the money that was agreed is charged, one
-- label is printed. An order that was rolled back, or never came to be, has nothing left. A pending one is still under way.
-- One statement is one snapshot: the four services are seen at the same moment.
WITH known AS (
    SELECT id AS order_id FROM orders.orders
    UNION SELECT order_id FROM inventory.reservations
    UNION SELECT order_id FROM payments.charges
    UNION SELECT order_id FROM shipping.labels
),
ordered AS (
    SELECT order_id, jsonb_object_agg(sku, quantity) AS lines
    FROM orders.lines
    GROUP BY order_id
),
reserved AS (
    SELECT order_id, sum(quantity) AS units, jsonb_object_agg(sku, quantity) AS lines
    FROM (
        SELECT r.order_id, l.sku, sum(l.quantity)::bigint AS quantity
        FROM inventory.reservations r
        JOIN inventory.lines l ON l.reservation = r.id
        WHERE r.released_at IS NULL
        GROUP BY r.order_id, l.sku
    ) per_article
    GROUP BY order_id
),
money AS (
    SELECT c.order_id, sum(c.amount - coalesce(r.amount, 0)) AS net, string_agg(DISTINCT c.currency, '+') AS currency
    FROM payments.charges c
    LEFT JOIN (SELECT charge, sum(amount) AS amount FROM payments.refunds GROUP BY charge) r ON r.charge = c.id
    GROUP BY c.order_id
),
labels AS (
    SELECT order_id, count(*) AS valid
    FROM shipping.labels
    WHERE voided_at IS NULL
    GROUP BY order_id
)
SELECT known.order_id                 AS "order",
       coalesce(o.status, 'none')     AS status,
       coalesce(reserved.units, 0)    AS reserved,
       coalesce(money.net, 0)         AS charged,
       coalesce(money.currency, '')   AS currency,
       coalesce(labels.valid, 0)      AS labels,
       CASE
           WHEN o.status = 'pending' THEN 'still pending'
           WHEN o.status IN ('confirmed', 'fulfilled') THEN concat_ws(', ',
               CASE WHEN reserved.lines IS DISTINCT FROM ordered.lines THEN 'reserved is not what was ordered' END,
               CASE WHEN coalesce(money.net, 0) <> o.amount OR money.currency <> o.currency THEN 'charged is not ' || o.amount || ' ' || o.currency END,
               CASE WHEN coalesce(labels.valid, 0) <> 1 THEN 'labels are not 1' END)
           ELSE concat_ws(', ',
               CASE WHEN reserved.units <> 0 THEN 'stock is still reserved' END,
               CASE WHEN money.net <> 0 THEN 'money is still charged' END,
               CASE WHEN labels.valid <> 0 THEN 'a label is still valid' END)
       END                            AS problem
FROM known
LEFT JOIN orders.orders o ON o.id = known.order_id
LEFT JOIN ordered ON ordered.order_id = known.order_id
LEFT JOIN reserved ON reserved.order_id = known.order_id
LEFT JOIN money ON money.order_id = known.order_id
LEFT JOIN labels ON labels.order_id = known.order_id
ORDER BY known.order_id
