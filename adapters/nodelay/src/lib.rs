//! TCP_NODELAY on the connections of sqlx.
//!
//! sqlx 0.9.0 leaves Nagle's algorithm on. What it writes in several parts, as every statement of more than 16 KiB under
//! TLS, then waits up to 40 ms for an acknowledgement that the server delays. sqlx sets the option again in its next
//! release ([4336](https://github.com/launchbadge/sqlx/pull/4336)), and this crate goes then. Until then sqlx gives
//! nobody its sockets, so that they are looked for among those of the process.

/// Sets the option on every connection of this process to a server's `port`, and returns on how many it was not set. To be
/// called when one was made; it takes some microseconds for each file that is open.
///
/// On Linux only, and where `/proc` is there. Elsewhere nothing happens: connections work, and large statements wait.
pub fn set(port: u16) -> usize {
    #[cfg(target_os = "linux")]
    return linux::set(port).unwrap_or_else(|error| {
        tracing::debug!(port, %error, "TCP_NODELAY could not be set: large statements may wait for 40 ms");
        0
    });
    #[cfg(not(target_os = "linux"))]
    {
        let _ = port;
        0
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::fs;
    use std::io;
    use std::os::fd::RawFd;

    use nix::sys::socket::sockopt::TcpNoDelay;
    use nix::sys::socket::{SockaddrStorage, getpeername, getsockopt, setsockopt};

    /// A number may come to stand for another file between two steps. Then an option is asked for that files do not have, or
    /// another connection is set to what ours are: neither does harm.
    pub(super) fn set(port: u16) -> io::Result<usize> {
        let numbers = fs::read_dir("/proc/self/fd")?
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<RawFd>().ok());
        let bare =
            numbers.filter(|number| leads_to(*number, port) && getsockopt(*number, TcpNoDelay) == Ok(false));
        Ok(bare.filter(|number| setsockopt(*number, TcpNoDelay, &true).is_ok()).count())
    }

    /// What is no socket, not connected, or not by IP, leads nowhere.
    fn leads_to(number: RawFd, port: u16) -> bool {
        let Ok(peer) = getpeername::<SockaddrStorage>(number) else { return false };
        let v4 = peer.as_sockaddr_in().map(|peer| peer.port());
        v4.or_else(|| peer.as_sockaddr_in6().map(|peer| peer.port())) == Some(port)
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn it_is_set_on_connections_to_that_port_alone() -> std::io::Result<()> {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let (listener, other) = (TcpListener::bind(address)?, TcpListener::bind(address)?);
            let connection = TcpStream::connect(listener.local_addr()?)?;
            let elsewhere = TcpStream::connect(other.local_addr()?)?;
            assert!(!connection.nodelay()?);

            let port = listener.local_addr()?.port();
            assert_eq!((super::set(port), super::set(port)), (1, 0));
            assert!(connection.nodelay()?);
            assert!(!elsewhere.nodelay()?);
        }
        Ok(())
    }
}
