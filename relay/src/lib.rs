//! Drains a transactional outbox into a broker, collects dead letters and redrives them
