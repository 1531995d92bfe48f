-- What the owner of a lease tells of itself, and since when. Nullable, so that no row is touched; who waits for the
-- table gives up soon rather than make everybody else wait behind it.
SET LOCAL lock_timeout = '5s';
ALTER TABLE backstop_lease ADD COLUMN report text, ADD COLUMN reported_at timestamptz;
