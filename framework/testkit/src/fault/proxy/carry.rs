//! One direction of a connection.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, watch};
use tokio::time::sleep;

use super::{Mode, State};

/// The largest frame of Kafka that is passed on; clients ask for less at once.
const LARGEST_FRAME: usize = 128 << 20;

/// An address within frames of Kafka, and another of the same length in place of it.
#[derive(Debug, Clone)]
pub(super) struct Rewriting {
    from: [u8; 13],
    to: [u8; 13],
}

impl Rewriting {
    /// Kafka writes an address as text and its port as a number of four bytes behind it.
    pub(super) fn new(from: SocketAddr, to: SocketAddr) -> io::Result<Self> {
        if from.ip() != Ipv4Addr::LOCALHOST || to.ip() != Ipv4Addr::LOCALHOST {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "addresses differ in length"));
        }
        let written = |address: SocketAddr| {
            let mut bytes = *b"127.0.0.1\0\0\0\0";
            bytes[9..].copy_from_slice(&u32::from(address.port()).to_be_bytes());
            bytes
        };
        Ok(Self { from: written(from), to: written(to) })
    }

    fn apply(&self, frame: &mut [u8]) {
        let mut at = 0;
        while at + self.from.len() <= frame.len() {
            if frame[at..].starts_with(&self.from) {
                frame[at..at + self.to.len()].copy_from_slice(&self.to);
                at += self.to.len();
            } else {
                at += 1;
            }
        }
    }
}

/// Who sends what is carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Server,
}

/// One direction of a connection, and what is to happen to it.
pub(super) struct Lane<'a> {
    side: Side,
    states: watch::Receiver<State>,
    strands: u64,
    /// Told when the connection has carried as much as it may.
    exhausted: &'a Notify,
    /// Bytes that may still pass.
    left: Option<usize>,
    damage: Damage,
}

impl<'a> Lane<'a> {
    pub(super) fn new(
        side: Side,
        states: watch::Receiver<State>,
        strands: u64,
        exhausted: &'a Notify,
    ) -> Self {
        Self { side, states, strands, exhausted, left: None, damage: Damage::default() }
    }

    /// Passes a piece on; `false` when nothing more is to come.
    async fn pass(&mut self, piece: &mut [u8], to: &mut OwnedWriteHalf) -> bool {
        if !passes(&mut self.states, self.strands, piece.len()).await {
            return false;
        }
        let now = *self.states.borrow();
        self.damage.apply(now.flip_after.filter(|_| self.side == Side::Server), piece);
        let limit = now.cut_after.filter(|(side, _)| *side == self.side).map(|(_, bytes)| bytes);
        let allowed = limit.map(|limit| self.left.unwrap_or(limit));
        let passed = allowed.map_or(piece.len(), |allowed| allowed.min(piece.len()));
        self.left = allowed.map(|allowed| allowed - passed);
        if to.write_all(&piece[..passed]).await.is_err() {
            return false;
        }
        let ends = self.left == Some(0);
        if ends {
            self.exhausted.notify_one();
        }
        !ends
    }

    /// One side has ended: on a stranded connection the other never hears of it, as long as the proxy is there.
    async fn end(&mut self) {
        let strands = self.strands;
        let _gone = self.states.wait_for(|state| state.strands == strands).await;
    }
}

/// Damages one byte, once.
#[derive(Debug, Default)]
struct Damage {
    /// Bytes before it.
    left: Option<usize>,
    done: bool,
}

impl Damage {
    fn apply(&mut self, wanted: Option<(usize, u8)>, piece: &mut [u8]) {
        let Some((after, mask)) = wanted else {
            *self = Self::default();
            return;
        };
        let left = self.left.unwrap_or(after);
        match piece.get_mut(left) {
            _ if self.done => {}
            Some(byte) => {
                *byte ^= mask;
                self.done = true;
            }
            None => self.left = Some(left - piece.len()),
        }
    }
}

/// Copies one direction until it ends.
pub(super) async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut lane: Lane<'_>) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if !lane.pass(&mut buffer[..count], &mut to).await {
            break;
        }
    }
    lane.end().await;
}

/// Copies whole frames of Kafka, with one address in place of another.
pub(super) async fn carry_frames(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut lane: Lane<'_>,
    rewriting: Rewriting,
) {
    while let Ok(length) = from.read_u32().await {
        let length = length as usize;
        if length > LARGEST_FRAME {
            break;
        }
        let mut frame = vec![0; 4 + length];
        frame[..4].copy_from_slice(&(length as u32).to_be_bytes());
        if from.read_exact(&mut frame[4..]).await.is_err() {
            break;
        }
        rewriting.apply(&mut frame[4..]);
        for piece in frame.chunks_mut(16 << 10) {
            if !lane.pass(piece, &mut to).await {
                return;
            }
        }
    }
    lane.end().await;
}

/// Waits until a piece of `count` bytes may pass; `false` when the proxy is gone. For ever on a stranded connection.
async fn passes(states: &mut watch::Receiver<State>, strands: u64, count: usize) -> bool {
    let open = |state: &State| state.mode == Mode::Forward && state.strands == strands;
    let Ok(slow) = states.wait_for(open).await.map(|state| state.slow) else { return false };
    if let Some((latency, bytes_per_second)) = slow {
        sleep(latency + Duration::from_secs_f64(count as f64 / f64::from(bytes_per_second.max(1)))).await;
    }
    true
}
