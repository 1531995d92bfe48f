-- What the owner of a lease tells of itself, and since when (milliseconds since the epoch).
ALTER TABLE backstop_lease ADD COLUMN report TEXT;
ALTER TABLE backstop_lease ADD COLUMN reported_at INTEGER;
