DROP TABLE IF EXISTS `backstop_held_gate`;
DROP TABLE IF EXISTS `backstop_held`;
DROP TABLE IF EXISTS `backstop_inbox`;
