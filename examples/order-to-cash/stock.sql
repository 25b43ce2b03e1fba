-- Where the delivered goods are: available, held back for orders, or gone to customers.
SELECT s.sku,
       s.delivered,
       s.available,
       coalesce(lines.held, 0) AS held,
       coalesce(lines.gone, 0) AS gone
FROM inventory.stock s
LEFT JOIN (
    SELECT l.sku,
           (sum(l.quantity) FILTER (WHERE r.state = 'reserved'))::bigint  AS held,
           (sum(l.quantity) FILTER (WHERE r.state = 'committed'))::bigint AS gone
    FROM inventory.reservations r
    JOIN inventory.lines l ON l.reservation = r.id
    GROUP BY l.sku
) lines ON lines.sku = s.sku
ORDER BY s.sku
