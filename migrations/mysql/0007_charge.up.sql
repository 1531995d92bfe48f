-- How often messages that are not held, and may have felled a process, were charged. Almost always empty.
CREATE TABLE IF NOT EXISTS `backstop_charge` (
    `consumer`    varbinary(255) NOT NULL,
    `message_key` varbinary(640) NOT NULL,
    `crashes`     int NOT NULL,
    `charged_at`  datetime(6) NOT NULL,
    PRIMARY KEY (`consumer`, `message_key`)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC;

-- Runs of a held message in a row that did not come to an end, because their process died. The last statement: run
-- again, it fails for a column that is there, which is taken for done.
ALTER TABLE `backstop_held` ADD COLUMN `crashes` int NOT NULL DEFAULT 0;
