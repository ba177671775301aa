//! What can be done to the parts of a cluster.

use std::process::ExitStatus;

use rustix::process::Signal;
use serde_json::Value;

use super::{Cluster, Part};

impl Cluster {
    /// Ends a process as `kill -9` does.
    pub fn kill(&mut self, part: Part) {
        self.process_mut(part).kill();
    }

    /// Stops a process where it stands.
    pub fn pause(&self, part: Part) {
        self.process(part).signal(Signal::STOP);
    }

    /// Lets a paused process go on.
    pub fn resume(&self, part: Part) {
        self.process(part).signal(Signal::CONT);
    }

    /// Asks a process to end, and waits until it has.
    pub async fn terminate(&mut self, part: Part) -> ExitStatus {
        let process = self.process_mut(part);
        process.signal(Signal::TERM);
        process.exit().await
    }

    /// Starts a process that has ended again, and does not wait for it.
    pub fn revive(&mut self, part: Part) {
        self.process_mut(part).revive();
    }

    /// Starts a process that has ended again and waits until it answers.
    pub async fn restart(&mut self, part: Part) {
        self.revive(part);
        match part {
            Part::Gateway(at) => self.until_ready(at).await,
            _ => self.up(part).await,
        }
    }

    /// Changes the configuration of every gateway and coordinator, and tells them.
    pub fn reconfigure(&mut self, change: impl Fn(&mut Value)) {
        change(&mut self.options.config);
        for member in self.coordinators.iter().chain(&self.gateways) {
            member.process.change_config(&change);
            member.process.signal(Signal::HUP);
        }
    }

    /// Adds a gateway, and sends clients to it when it is ready.
    pub async fn grow(&mut self) {
        let member = self.member("gateway", self.gateways.len()).await;
        self.gateways.push(member);
        self.until_ready(self.gateways.len() - 1).await;
        self.balance();
    }

    /// Takes the last gateway away: no new clients, and then SIGTERM.
    pub async fn shrink(&mut self) {
        let mut member = self.gateways.pop().expect("a gateway");
        self.balance();
        member.process.signal(Signal::TERM);
        let status = member.process.exit().await;
        assert!(status.success(), "a gateway that was asked to end: {status}\n{}", member.process.log());
    }
}
