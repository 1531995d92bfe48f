-- Of a dead row that came from a table of another layout: which table, and the row as it was there, so that it can be
-- put back. Null for rows of backstop_outbox. Adding a column without a default touches no row; whoever holds the table
-- for long makes this step fail rather than everybody else wait behind it.
SET LOCAL lock_timeout = '5s';
ALTER TABLE backstop_outbox_dead ADD COLUMN origin text, ADD COLUMN original jsonb;
