-- Who owns a job, by this server's clock. The row stays when a lease ends, so that its token only ever grows.
CREATE TABLE IF NOT EXISTS `backstop_lease` (
    `name`       varbinary(255) NOT NULL,
    `owner`      varbinary(255),
    `token`      bigint NOT NULL,
    `expires_at` datetime(6) NOT NULL,
    PRIMARY KEY (`name`)
) ENGINE = InnoDB;
