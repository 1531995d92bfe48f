-- Rows of the outbox whose time has not come. The relay moves each into the outbox, with a number given then and the id
-- that it has here, when publish_after (in UTC) has passed by this server's clock. Part of the public contract: any
-- language may insert, and only publish_after, destination and payload need a value; deleting a row before its time
-- takes it back.
CREATE TABLE IF NOT EXISTS `backstop_outbox_scheduled` (
    `n`             bigint NOT NULL AUTO_INCREMENT,
    `publish_after` datetime(6) NOT NULL,
    `id`            varchar(255) NOT NULL DEFAULT (uuid()),
    `source`        text,
    `destination`   varchar(255) NOT NULL,
    `routing_key`   varchar(255),
    `key`           mediumtext,
    `kind`          text,
    `subject`       text,
    `event_time`    datetime(6),
    `content_type`  text,
    `headers`       json,
    `payload`       longblob,
    `created_at`    datetime(6) NOT NULL DEFAULT (utc_timestamp(6)),
    PRIMARY KEY (`n`),
    KEY `due` (`publish_after`, `n`),
    CHECK (char_length(`id`) > 0 AND octet_length(`id`) <= 255),
    CHECK (char_length(`destination`) > 0)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
