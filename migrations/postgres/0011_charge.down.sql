DROP TABLE backstop_charge;
ALTER TABLE backstop_held DROP COLUMN crashes;
