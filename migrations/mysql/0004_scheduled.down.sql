DROP TABLE IF EXISTS `backstop_outbox_scheduled`;
