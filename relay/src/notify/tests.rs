use std::collections::VecDeque;
use std::sync::Mutex;

use backstop_core::Envelope;
use backstop_core::ledger::{Guard, Letter, Redrives as _};
use backstop_testkit::memory::Store;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::config::{Config, Environment};
use crate::redrive::new_redrive;

const SECRET: &str = "0123456789abcdef";

/// A web server that answers with these status lines, then with 200, and keeps what it was sent.
struct Receiver {
    url: String,
    received: Arc<Mutex<Vec<String>>>,
}

impl Receiver {
    async fn answering(answers: &[&str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/hook", listener.local_addr().expect("an address"));
        let received = Arc::new(Mutex::new(Vec::new()));
        let (kept, mut answers) =
            (received.clone(), answers.iter().map(|it| (*it).to_owned()).collect::<VecDeque<_>>());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = Vec::new();
                while !is_whole(&request) {
                    let mut part = [0; 4_096];
                    match stream.read(&mut part).await {
                        Ok(0) | Err(_) => break,
                        Ok(read) => request.extend_from_slice(&part[..read]),
                    }
                }
                kept.lock().expect("not poisoned").push(String::from_utf8_lossy(&request).into_owned());
                let answer = answers.pop_front().unwrap_or_else(|| "200 OK".to_owned());
                let answer = format!("HTTP/1.1 {answer}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
                // The sender may have gone.
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        Self { url, received }
    }

    fn received(&self) -> Vec<String> {
        self.received.lock().expect("not poisoned").clone()
    }

    async fn until(&self, number: usize) -> Vec<String> {
        let waiting = async {
            while self.received().len() < number {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), waiting)
            .await
            .unwrap_or_else(|_| panic!("{:?}", self.received()));
        self.received()
    }
}

fn is_whole(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request).to_ascii_lowercase();
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    body.len() >= length.unwrap_or(0)
}

fn targets(more: &str) -> Vec<NotifyConfig> {
    let text = format!("[database]\nurl = \"sqlite::memory:\"\n{more}");
    Config::parse(&text, &Environment::default()).expect("sound").notify
}

fn webhook(url: &str) -> Vec<NotifyConfig> {
    targets(&format!(
        "[[notify]]\nurl = \"{url}\"\nsecret = \"{SECRET}\"\ngrowing_over = 5\nconsole = \"https://relay.internal/\"\n"
    ))
}

/// A notifier over this store, until the token is cancelled.
fn start(store: &Store, targets: &[NotifyConfig]) -> (CancellationToken, tokio::task::JoinHandle<()>) {
    let owner = OwnerSettings { lease: "notify".into(), ..OwnerSettings::default() };
    let notifier = Notifier::new(Arc::new(store.clone()), targets, owner).expect("made");
    let stop = CancellationToken::new();
    (stop.clone(), tokio::spawn(notifier.looking_every(Duration::from_millis(10)).run(stop)))
}

async fn fail(store: &Store, group: &str, letters: usize) {
    let letters = (0..letters).map(|n| {
        let mut letter = Letter::new(format!("{group}-{n}"), "orders.stock.dlq", Envelope::default());
        letter.fingerprint = Some(group.into());
        letter.consumer = Some("stock".into());
        letter.error_type = Some("shop::<Refused>".into());
        letter.error = Some("card 4111".into());
        letter.door = Some("orders.stock.redrive".into());
        letter.dead_at = Some(Utc::now());
        letter
    });
    store.record(&letters.collect::<Vec<_>>()).await.expect("recorded");
}

fn body(request: &str) -> &str {
    request.split_once("\r\n\r\n").expect("a head").1
}

fn header<'r>(request: &'r str, name: &str) -> Option<&'r str> {
    request.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

fn events(requests: &[String]) -> Vec<String> {
    let event = |request: &String| {
        serde_json::from_str::<Value>(body(request)).expect("JSON")["event"]
            .as_str()
            .expect("a text")
            .to_owned()
    };
    requests.iter().map(event).collect()
}

#[tokio::test]
async fn each_thing_is_told_once_signed_and_not_again_after_a_restart() {
    let (store, receiver) = (Store::default(), Receiver::answering(&[]).await);
    let targets = webhook(&receiver.url);
    fail(&store, "f1", 3).await;
    let (stop, running) = start(&store, &targets);
    let first = receiver.until(1).await.remove(0);
    let timestamp = header(&first, "backstop-timestamp").expect("a time");
    let expected = send::signature(SECRET, timestamp, body(&first));
    assert_eq!(header(&first, "backstop-signature"), Some(&*expected), "{first}");
    let notice: Value = serde_json::from_str(body(&first)).expect("JSON");
    assert_eq!((&notice["event"], &notice["details"]["open"]), (&"group-new".into(), &3.into()));
    assert_eq!(notice["link"], "https://relay.internal/groups/f1");
    assert!(!first.contains("4111") && !first.contains(SECRET), "{first}");

    fail(&store, "f2", 6).await;
    let guard = Guard::default();
    let redrive = new_redrive(LetterFilter::of_status(LetterStatus::Open), guard);
    let made = store.create_redrive(&redrive).await.expect("made");
    let over = made.cancelled(Some("enough".into())).expect("it runs");
    assert!(store.steer_redrive(&redrive.id, &made.standing, &over).await.expect("steered"));
    let mut told = events(&receiver.until(4).await);
    told.sort();
    assert_eq!(told, ["group-growing", "group-new", "group-new", "redrive-ended"]);
    stop.cancel();
    running.await.expect("ended");

    let (stop, running) = start(&store, &targets);
    fail(&store, "f3", 1).await;
    let all = receiver.until(5).await;
    assert!(body(&all[4]).contains("f3"), "nothing else was told again: {all:?}");
    stop.cancel();
    running.await.expect("ended");
}

#[tokio::test]
async fn what_is_not_taken_is_sent_again_and_no_redirect_is_followed() {
    let elsewhere = Receiver::answering(&[]).await;
    let redirect = format!("307 Temporary Redirect\r\nLocation: {}", elsewhere.url);
    let receiver = Receiver::answering(&["503 Service Unavailable", &redirect]).await;
    let store = Store::default();
    fail(&store, "f1", 1).await;
    let (stop, running) = start(&store, &webhook(&receiver.url));
    let sent = receiver.until(3).await;
    assert_eq!(header(&sent[0], "backstop-notice-id"), header(&sent[2], "backstop-notice-id"));
    assert_eq!(elsewhere.received().len(), 0, "S34: the configured address, and no other");
    stop.cancel();
    running.await.expect("ended");
}

#[tokio::test]
async fn slack_is_given_a_text_in_which_nothing_mentions_anybody() {
    let (store, receiver) = (Store::default(), Receiver::answering(&[]).await);
    let more = format!("[[notify]]\nkind = \"slack\"\nurl = \"{}\"\non = [\"group-new\"]\n", receiver.url);
    fail(&store, "f1", 2).await;
    let (stop, running) = start(&store, &targets(&more));
    let sent = receiver.until(1).await.remove(0);
    let text = serde_json::from_str::<Value>(body(&sent)).expect("JSON")["text"]
        .as_str()
        .expect("a text")
        .to_owned();
    assert_eq!(text, "stock has a new kind of dead letters: shop::&lt;Refused&gt;, 2 open");
    stop.cancel();
    running.await.expect("ended");
}

#[tokio::test]
async fn an_address_that_does_not_answer_is_not_named() {
    let targets = targets("[[notify]]\nkind = \"slack\"\nurl = \"http://127.0.0.1:1/s3cret-path\"\n");
    let sender = Sender::new(&targets[0]).expect("made");
    let why = sender.probe().await.expect_err("nobody listens");
    assert!(!why.contains("s3cret"), "{why}");
    assert!(!format!("{targets:?}").contains("s3cret"), "{targets:?}");
}
