//! TCP_NODELAY on the connections of sqlx.
//!
//! sqlx 0.9.0 leaves Nagle's algorithm on. What it writes in several parts, as every statement of more than 16 KiB under
//! TLS, then waits up to 40 ms for an acknowledgement that the server delays. sqlx sets the option again in its next
//! release ([4336](https://github.com/launchbadge/sqlx/pull/4336)), and this crate goes then. Until then sqlx gives
//! nobody its sockets, so that they are looked for among those of the process.

/// Sets the option on every connection of this process to a server's `port`, and returns on how many it was not set. To be
/// called when one was made.
///
/// Where the operating system does not let a process look at its own sockets (or is not Linux 5.6 or later) nothing
/// happens: connections work, and large statements wait.
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
    use std::net::SocketAddr;
    use std::os::fd::OwnedFd;
    use std::os::unix::ffi::OsStrExt;

    use rustix::io;
    use rustix::net::{getpeername, sockopt};
    use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

    pub(super) fn set(port: u16) -> std::io::Result<usize> {
        let mut changed = 0;
        let this = pidfd_open(getpid(), PidfdFlags::empty())?;
        for entry in fs::read_dir("/proc/self/fd")? {
            let entry = entry?;
            let Some(number) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            // One that was closed meanwhile has no link.
            let Ok(what) = fs::read_link(entry.path()) else { continue };
            if !what.as_os_str().as_bytes().starts_with(b"socket:") {
                continue;
            }
            // A number may stand for something else a moment later. A descriptor of our own does not.
            match pidfd_getfd(&this, number, PidfdGetfdFlags::empty()) {
                Ok(socket) if leads_to(&socket, port) && sockopt::tcp_nodelay(&socket) == Ok(false) => {
                    sockopt::set_tcp_nodelay(&socket, true)?;
                    changed += 1;
                }
                Ok(_) | Err(io::Errno::BADF) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(changed)
    }

    /// Sockets that are not connected, or not by TCP, lead nowhere.
    fn leads_to(socket: &OwnedFd, port: u16) -> bool {
        let peer = getpeername(socket).ok().flatten();
        peer.and_then(|peer| SocketAddr::try_from(peer).ok()).is_some_and(|peer| peer.port() == port)
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn it_is_set_on_connections_to_that_port_alone() -> std::io::Result<()> {
        let (listener, other) = (TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?);
        let connection = TcpStream::connect(listener.local_addr()?)?;
        let elsewhere = TcpStream::connect(other.local_addr()?)?;
        assert!(!connection.nodelay()?);

        let port = listener.local_addr()?.port();
        assert_eq!((super::set(port), super::set(port)), (1, 0));
        assert!(connection.nodelay()?);
        assert!(!elsewhere.nodelay()?);
        Ok(())
    }
}
