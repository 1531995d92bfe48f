-- A row means that the consumer has handled the message; it commits together with the handler's effects.
-- Names and identities are bytes: even the binary collation of texts takes `a` and `a ` for equal.
CREATE TABLE IF NOT EXISTS `backstop_inbox` (
    `consumer`    varbinary(255) NOT NULL,
    `message_key` varbinary(640) NOT NULL,
    `handled_at`  datetime(6) NOT NULL DEFAULT (utc_timestamp(6)),
    PRIMARY KEY (`consumer`, `message_key`),
    KEY `age` (`consumer`, `handled_at`)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- Failures that wait. The lowest n of a key is its head; only heads run.
-- Ordering keys may be of any length, so the index holds their digest.
CREATE TABLE IF NOT EXISTS `backstop_held` (
    `n`            bigint NOT NULL AUTO_INCREMENT,
    `consumer`     varbinary(255) NOT NULL,
    `place`        varbinary(255) NOT NULL,
    `ordering_key` longblob NOT NULL,
    `digest`       binary(32) GENERATED ALWAYS AS (unhex(sha2(`ordering_key`, 256))) STORED,
    `message_key`  varbinary(640) NOT NULL,
    `state`        varchar(8) NOT NULL CHECK (`state` IN ('retry', 'waiting')),
    `due_at`       datetime(6) NOT NULL DEFAULT (utc_timestamp(6)),
    `attempts`     int NOT NULL DEFAULT 0,
    `throttled`    int NOT NULL DEFAULT 0,
    `condemned`    varchar(64),
    `class`        varchar(64),
    `error`        mediumtext,
    `held_since`   datetime(6) NOT NULL DEFAULT (utc_timestamp(6)),
    `msg_key`      longblob,
    `headers`      longblob NOT NULL,
    `body`         longblob,
    `origin`       mediumtext NOT NULL,
    `via`          varchar(4) NOT NULL CHECK (`via` IN ('live', 'door')),
    PRIMARY KEY (`n`),
    UNIQUE KEY `message` (`consumer`, `message_key`),
    KEY `in_order` (`consumer`, `place`, `digest`, `n`),
    KEY `due` (`consumer`, `state`, `due_at`)
) ENGINE = InnoDB ROW_FORMAT = DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- Who adds a message to a key, or takes its head away, locks the key's gate for that moment. The rows hold nothing.
CREATE TABLE IF NOT EXISTS `backstop_held_gate` (
    `n` int NOT NULL,
    PRIMARY KEY (`n`)
) ENGINE = InnoDB;
INSERT IGNORE INTO `backstop_held_gate` (`n`) VALUES
    (0), (1), (2), (3), (4), (5), (6), (7), (8), (9), (10), (11), (12), (13), (14), (15),
    (16), (17), (18), (19), (20), (21), (22), (23), (24), (25), (26), (27), (28), (29), (30), (31),
    (32), (33), (34), (35), (36), (37), (38), (39), (40), (41), (42), (43), (44), (45), (46), (47),
    (48), (49), (50), (51), (52), (53), (54), (55), (56), (57), (58), (59), (60), (61), (62), (63);
