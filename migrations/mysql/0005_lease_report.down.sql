ALTER TABLE `backstop_lease` DROP COLUMN `report`, DROP COLUMN `reported_at`;
