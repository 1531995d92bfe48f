//! What every broker shows, on queues of its own for each case.

use backstop_core::dead_letter::{rabbitmq_door, rabbitmq_letters};
use backstop_rabbitmq::{
    RabbitDeadLetters, RabbitPublisher, RabbitSettings, RabbitSink, RabbitSource, declare_queue, delete_queue,
};
use backstop_testkit::conformance::{BrokerCapabilities, BrokerHarness};

struct Rabbit {
    queue: String,
}

const MAX_BYTES: usize = 1 << 20;

fn settings() -> RabbitSettings {
    let url = std::env::var("BACKSTOP_TEST_AMQP_URL")
        .expect("BACKSTOP_TEST_AMQP_URL is not set; run: eval \"$(tests/servers env)\"");
    RabbitSettings::parse(&url).expect("a URL")
}

impl Rabbit {
    fn all(&self) -> [String; 3] {
        [self.queue.clone(), rabbitmq_door(&self.queue), rabbitmq_letters(&self.queue)]
    }
}

impl BrokerHarness for Rabbit {
    type Source = RabbitSource;
    type Sink = RabbitSink;
    type Publisher = RabbitPublisher;
    type DeadLetters = RabbitDeadLetters;

    const CAPABILITIES: BrokerCapabilities = BrokerCapabilities {
        key_order_over_members: false,
        coordinates_identity: false,
        settles_in_order: false,
        null_headers: true,
        repeated_headers: false,
        tombstones: false,
        binary_keys: true,
        size_limit: true,
        missing_destination: true,
        asks_for_destinations: true,
    };

    async fn fresh() -> Self {
        let rabbit = Self { queue: format!("conformance-{}", uuid::Uuid::now_v7().simple()) };
        for queue in rabbit.all() {
            declare_queue(&settings(), &queue).await.expect("declared");
        }
        rabbit
    }

    fn place(&self) -> String {
        self.queue.clone()
    }

    fn group(&self) -> String {
        self.queue.clone()
    }

    fn door(&self) -> String {
        rabbitmq_door(&self.queue)
    }

    async fn source(&self, window: usize) -> RabbitSource {
        let prefetch = u16::try_from(window).expect("a small window");
        let source = RabbitSource::with_settings(settings(), &self.queue).prefetch(prefetch);
        source.build().expect("sound settings")
    }

    async fn letters(&self) -> RabbitSource {
        let source = RabbitSource::with_settings(settings(), rabbitmq_letters(&self.queue)).door(false);
        source.build().expect("sound settings")
    }

    async fn sink(&self) -> RabbitSink {
        RabbitSink::new(settings()).max_message_bytes(MAX_BYTES)
    }

    async fn publisher(&self) -> RabbitPublisher {
        let publisher = RabbitPublisher::builder(settings()).max_message_bytes(MAX_BYTES);
        publisher.start().expect("sound settings")
    }

    async fn dead_letters(&self) -> RabbitDeadLetters {
        RabbitDeadLetters::new(settings())
    }

    fn max_bytes(&self) -> usize {
        MAX_BYTES
    }

    async fn clean_up(self) {
        for queue in self.all() {
            // Left-overs do no harm: a test's end is no place to fail.
            drop(delete_queue(&settings(), &queue).await);
        }
    }
}

backstop_testkit::broker_conformance!(Rabbit);
