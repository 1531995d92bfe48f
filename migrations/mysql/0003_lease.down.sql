DROP TABLE IF EXISTS `backstop_lease`;
