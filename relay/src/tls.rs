//! The cryptography of HTTPS clients.

/// Chooses ring for clients that are made from now on. They take what the process has chosen, and panic where it has not.
pub(crate) fn choose_ring() {
    // Somebody may have chosen before, and then the same: it is the only one that is built in.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
