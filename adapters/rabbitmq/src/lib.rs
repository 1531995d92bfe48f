//! Backstop on RabbitMQ through lapin
