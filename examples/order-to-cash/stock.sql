-- Whether the stock adds up: what was delivered is either available or reserved.
SELECT s.sku,
       s.delivered,
       s.available,
       coalesce(reserved.quantity, 0) AS reserved,
       CASE
           WHEN s.available + coalesce(reserved.quantity, 0) <> s.delivered THEN 'available and reserved do not add up to delivered'
           ELSE ''
       END                            AS problem
FROM inventory.stock s
LEFT JOIN (
    SELECT l.sku, sum(l.quantity)::bigint AS quantity
    FROM inventory.reservations r
    JOIN inventory.lines l ON l.reservation = r.id
    WHERE r.released_at IS NULL
    GROUP BY l.sku
) reserved ON reserved.sku = s.sku
ORDER BY s.sku
