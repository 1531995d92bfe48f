-- What the owner of a lease tells of itself, and since when. One statement, which is done or not; run again, it fails
-- for columns that are there, which is taken for done.
ALTER TABLE `backstop_lease` ADD COLUMN `report` text CHARACTER SET utf8mb4 COLLATE utf8mb4_bin, ADD COLUMN `reported_at` datetime(6);
