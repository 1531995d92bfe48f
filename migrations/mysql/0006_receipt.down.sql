DROP TABLE IF EXISTS `backstop_receipt`;
