-- Receipts of redriven messages that a consumer owes: written in the transaction that handles the message, deleted when
-- the broker has confirmed the receipt. Almost always empty.
CREATE TABLE IF NOT EXISTS `backstop_receipt` (
    `n`          bigint NOT NULL AUTO_INCREMENT,
    `consumer`   varbinary(255) NOT NULL,
    `instance`   varbinary(255) NOT NULL,
    `receipt`    mediumtext NOT NULL,
    `owed_since` datetime(6) NOT NULL DEFAULT (utc_timestamp(6)),
    PRIMARY KEY (`n`),
    KEY `owed` (`consumer`, `n`)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
