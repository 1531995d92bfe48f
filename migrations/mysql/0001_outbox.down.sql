DROP TABLE IF EXISTS `backstop_outbox_dead`;
DROP TABLE IF EXISTS `backstop_outbox`;
