-- The outbox is a public contract: any language may insert, and only destination and payload need a value.
-- seq must come from AUTO_INCREMENT. Texts are compared character by character: no letter equals another.
-- A change of tables cannot be rolled back here, so that every step can be run again after one that failed midway.
CREATE TABLE IF NOT EXISTS `backstop_outbox` (
    `seq`          bigint NOT NULL AUTO_INCREMENT,
    `id`           varchar(255) NOT NULL DEFAULT (uuid()),
    `source`       text,
    `destination`  varchar(255) NOT NULL,
    `routing_key`  varchar(255),
    `key`          mediumtext,
    `kind`         text,
    `subject`      text,
    -- In UTC, as all times here.
    `event_time`   datetime(6),
    `content_type` text,
    `headers`      json,
    `payload`      longblob,
    `created_at`   datetime(6) NOT NULL DEFAULT (utc_timestamp(6)),
    PRIMARY KEY (`seq`),
    CHECK (char_length(`id`) > 0 AND octet_length(`id`) <= 255),
    CHECK (char_length(`destination`) > 0)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- Rows that can never be sent, with the reason. seq is the number that the row had in the outbox.
CREATE TABLE IF NOT EXISTS `backstop_outbox_dead` (
    `n`            bigint NOT NULL AUTO_INCREMENT,
    `seq`          bigint NOT NULL,
    `id`           varchar(255) NOT NULL,
    `source`       text,
    `destination`  varchar(255) NOT NULL,
    `routing_key`  varchar(255),
    `key`          mediumtext,
    `kind`         text,
    `subject`      text,
    `event_time`   datetime(6),
    `content_type` text,
    `headers`      json,
    `payload`      longblob,
    `created_at`   datetime(6) NOT NULL,
    `reason`       text NOT NULL,
    `error`        text NOT NULL,
    `attempts`     int NOT NULL DEFAULT 1,
    `died_at`      datetime(6) NOT NULL DEFAULT (utc_timestamp(6)),
    PRIMARY KEY (`n`)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
