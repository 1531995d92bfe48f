//! Instances of a consumer that are started again when they die, as an orchestrator does it.

use crate::program::{ConsumerConfig, Program};

/// Processes of one consumer.
#[derive(Debug)]
pub struct Fleet {
    /// What each of them runs.
    pub config: ConsumerConfig,
    /// How many have ended by themselves so far.
    pub ended: u32,
    instances: Vec<Program>,
    turn: usize,
}

impl Fleet {
    /// Starts so many of them, at least one.
    pub fn start(config: ConsumerConfig, instances: usize) -> Self {
        let instances = (0..instances.max(1)).map(|_| config.spawn(None)).collect();
        Self { config, ended: 0, instances, turn: 0 }
    }

    /// The instance whose turn it is.
    pub fn next_instance(&mut self) -> &mut Program {
        self.turn += 1;
        let at = self.turn % self.instances.len();
        &mut self.instances[at]
    }

    /// Kills the instance whose turn it is; another one takes its place at once.
    pub fn replace_one(&mut self) {
        let new = self.config.spawn(None);
        drop(std::mem::replace(self.next_instance(), new));
    }

    /// Starts those again that have ended by themselves.
    pub fn tend(&mut self) {
        for instance in &mut self.instances {
            if !instance.is_running() {
                eprintln!("an instance of {} ended by itself", self.config.group);
                *instance = self.config.spawn(None);
                self.ended += 1;
            }
        }
    }
}
