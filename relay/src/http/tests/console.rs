//! The pages, walked as a person would.

use std::collections::{BTreeSet, VecDeque};

use backstop_core::ledger::Letter;

use super::rules::RULES;
use super::scene::{self, BODY, SECRET};
use super::*;

const FORM: &str =
    "Host: localhost\r\nOrigin: http://localhost\r\nContent-Type: application/x-www-form-urlencoded";

pub(super) async fn page(server: &Running, path: &str) -> String {
    let answer = get_with(server, path, "\r\nHost: localhost").await;
    assert_eq!(status(&answer), "200", "{path}: {answer}");
    answer
}

pub(super) async fn post(server: &Running, path: &str, form: &str) -> String {
    send_body(server, &format!("POST {path} HTTP/1.1\r\n{FORM}"), form).await
}

/// The values of an attribute.
fn values<'p>(page: &'p str, attribute: &str) -> Vec<&'p str> {
    let begin = format!(" {attribute}=\"");
    page.split(&begin).skip(1).map(|rest| &rest[..rest.find('"').expect("closed")]).collect()
}

fn plain(text: &str) -> String {
    text.replace("&amp;", "&").replace("&quot;", "\"").replace("&lt;", "<").replace("&gt;", ">")
}

/// The value of a hidden field.
pub(super) fn field(page: &str, name: &str) -> String {
    let begin = format!("name=\"{name}\" value=\"");
    let rest = page.split(&begin).nth(1).unwrap_or_else(|| panic!("no field {name}: {page}"));
    plain(&rest[..rest.find('"').expect("closed")])
}

/// Every sum of a page: the whole, and its parts.
fn sums(page: &str) -> Vec<(u64, u64)> {
    let of = |part: &str| {
        let end = part.find("</ul>").or_else(|| part.find("</table>")).unwrap_or(part.len());
        let terms = values(&part[..end], "data-term");
        terms.iter().map(|term| term.parse::<u64>().expect("a number")).sum()
    };
    page.split(" data-sum=\"")
        .skip(1)
        .map(|part| {
            let end = part.find('"').expect("closed");
            (part[..end].parse().expect("a number"), of(&part[end..]))
        })
        .collect()
}

/// Numbers that open something: the number and the address.
fn counts(page: &str) -> Vec<(u64, String)> {
    let links = page.split("<a class=\"n\" href=\"").skip(1);
    links
        .filter_map(|link| {
            let (address, rest) = link.split_once('"')?;
            let number = rest.strip_prefix(" data-count=\"")?.split('"').next()?;
            Some((number.parse().expect("a number"), plain(address)))
        })
        .collect()
}

/// Every page that can be reached is there, every number opens as many as it says, and every sum adds up.
#[tokio::test]
async fn every_number_opens_what_it_counts_and_every_sum_adds_up() {
    let server = serve(RULES).await;
    scene::fill(&server).await;
    start_one(&server).await;
    let (mut seen, mut next) = (BTreeSet::new(), VecDeque::from(["/".to_owned()]));
    let (mut followed, mut added) = (0, 0);
    while let Some(path) = next.pop_front() {
        if seen.len() > 250 || !seen.insert(path.clone()) {
            continue;
        }
        let page = page(&server, &path).await;
        for (whole, parts) in sums(&page) {
            assert_eq!(whole, parts, "{path}");
            added += 1;
        }
        for (number, address) in counts(&page) {
            let opened = self::page(&server, &address).await;
            assert_eq!(values(&opened, "data-total"), [number.to_string()], "{path} → {address}");
            followed += 1;
        }
        let links = values(&page, "href").into_iter().map(plain);
        let links = links.filter(|link| link.starts_with('/') && !link.contains("console."));
        next.extend(links.map(|link| link.split('#').next().unwrap_or_default().to_owned()));
    }
    assert!(followed > 20 && added > 5 && seen.len() > 20, "{followed} {added} {}", seen.len());
    for path in ["/rules", "/rules/stock-back/letters", "/rules/stock-fixed/letters"] {
        assert!(seen.contains(path), "{path}");
    }
}

/// Starts a redrive of the first group, as the form of its page does.
async fn start_one(server: &Running) -> String {
    let group = page(server, "/groups/f1").await;
    let form = format!(
        "fingerprint=f1&id={}&expected={}&canary=2&rate=1000&brake=5",
        field(&group, "id"),
        field(&group, "expected")
    );
    let answer = post(server, "/redrives", &form).await;
    assert_eq!(status(&answer), "303", "{answer}");
    let again = post(server, "/redrives", &form).await;
    let place = |answer: &str| {
        answer.split("location: ").nth(1).expect("a place").lines().next().expect("one").to_owned()
    };
    assert_eq!(place(&again), place(&answer), "a second press starts nothing");
    place(&answer)
}

#[tokio::test]
async fn a_redrive_is_started_steered_and_shown() {
    let server = serve("").await;
    scene::fill(&server).await;
    let place = start_one(&server).await;
    assert!(page(&server, &place).await.contains("data-sum=\"12\""));
    for (action, form, word) in [
        ("pause", "", "paused"),
        ("rate", "rate=7", "7 a second"),
        ("resume", "", "running"),
        ("cancel", "because=enough", "enough"),
    ] {
        let answer = post(&server, &format!("{place}/{action}"), form).await;
        assert_eq!(status(&answer), "303", "{action}: {answer}");
        assert!(page(&server, &place).await.contains(word), "{action}");
    }
    assert_eq!(status(&post(&server, &format!("{place}/resume"), "").await), "409");
    let audit = page(&server, "/audit").await;
    for action in ["redrive.start", "redrive.pause", "redrive.rate", "redrive.resume", "redrive.cancel"] {
        assert!(audit.contains(action), "{action}");
    }
}

#[tokio::test]
async fn a_plan_that_no_longer_fits_comes_back_with_the_new_sum() {
    let server = serve("").await;
    scene::fill(&server).await;
    let group = page(&server, "/groups/f2").await;
    // It died before the dry run, and was collected after it.
    server.ledger.record(&[scene::letter(9, "f2", "gateway timed out", 1)]).await.expect("recorded");
    let answer = post(&server, "/redrives", &confirmed("f2", &group)).await;
    assert_eq!(status(&answer), "409", "{answer}");
    assert!(answer.contains("Nothing was started: 6 letters would be sent now, not 5."), "{answer}");
    assert!(page(&server, "/redrives").await.contains("No redrive yet"));
    assert_eq!(status(&post(&server, "/redrives", &confirmed("f2", &answer)).await), "303");
}

/// A plan of very many letters is one of the first of them, and so is its redrive.
#[tokio::test]
async fn a_plan_of_too_many_letters_takes_the_first_and_says_so() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = serve_with(folder.path().join("x.db"), "", |desk| desk.judging(3)).await;
    scene::fill(&server).await;
    let group = page(&server, "/groups/f2").await;
    assert!(group.contains("More letters match"), "{group}");
    assert_eq!(sums(&group).last(), Some(&(3, 3)));
    let form = confirmed("f2", &group);
    let answer = post(&server, "/redrives", &form).await;
    assert_eq!(status(&answer), "303", "{answer}");
    assert_eq!(status(&post(&server, "/redrives", &form).await), "303", "pressed again");
    let redrives = server.ledger.redrives(None, 9).await.expect("read");
    assert_eq!((redrives.len(), redrives[0].letters().sum()), (1, 3), "those of the dry run and no others");
}

/// The form of a plan, as its button sends it.
fn confirmed(fingerprint: &str, page: &str) -> String {
    let of = |name: &str| field(page, name);
    format!("fingerprint={fingerprint}&id={}&expected={}&as_of={}", of("id"), of("expected"), of("as_of"))
}

/// Whoever confirms the plan of a group that grows has to be quick no more.
#[tokio::test]
async fn letters_that_fail_after_the_dry_run_do_not_bring_the_plan_back() {
    let server = serve("").await;
    scene::fill(&server).await;
    let group = page(&server, "/groups/f2").await;
    let late: Vec<Letter> = (9..12).map(|n| scene::letter(n, "f2", "gateway timed out", 0)).collect();
    server.ledger.record(&late).await.expect("recorded");
    let answer = post(&server, "/redrives", &confirmed("f2", &group)).await;
    assert_eq!(status(&answer), "303", "{answer}");
    let redrives = server.ledger.redrives(None, 9).await.expect("read");
    assert_eq!(redrives[0].letters().sum(), 5, "the letters of the dry run and no others");
}

/// S19, S29, S40: no page shows a body before it is asked for, a secret, or what a stranger wrote as HTML.
#[tokio::test]
async fn s29_bodies_are_hidden_until_they_are_revealed_and_that_is_written_down() {
    let server = serve("").await;
    scene::fill(&server).await;
    let letter = "/dead-letters/letter-f1-003";
    for path in ["/", "/groups", "/groups/f1", "/dead-letters", letter, "/plan?fingerprint=f1", "/audit"] {
        let page = page(&server, path).await;
        assert!(!page.contains(BODY), "{path}");
        assert!(!page.contains(SECRET), "{path}");
        assert!(!page.contains("<b>here") && !page.contains('\u{202e}'), "{path}");
        assert!(
            !page.contains("<style") && !page.contains(" style=") && !page.contains(" onclick="),
            "{path}"
        );
        assert_eq!(page.matches("<script").count(), 1, "{path}: only the file");
        assert!(page.contains("default-src 'none'; style-src 'self'; script-src 'self'"), "{path}");
    }
    let get = get_with(&server, &format!("{letter}/reveal"), "\r\nHost: localhost").await;
    assert_eq!(status(&get), "405");
    let revealed = post(&server, &format!("{letter}/reveal"), "because=INC-7").await;
    assert!(revealed.contains(BODY), "{revealed}");
    let audit = page(&server, "/audit").await;
    assert!(audit.contains("letters.reveal") && audit.contains("INC-7"), "{audit}");
    assert!(!audit.contains(BODY));
}

#[tokio::test]
async fn letters_are_discarded_with_a_reason_and_what_is_on_hold_stays() {
    let server = serve("").await;
    scene::fill(&server).await;
    let without = post(&server, "/dead-letters/discard", "fingerprint=f3&because=&expected=2").await;
    assert_eq!(status(&without), "400", "{without}");
    let all = post(&server, "/dead-letters/discard", "because=all&expected=19").await;
    assert_eq!(status(&all), "400", "an empty filter means nothing: {all}");
    let form = "fingerprint=f3&because=old+schema&expected=2";
    let answer = post(&server, "/dead-letters/discard", form).await;
    assert!(answer.contains("2 letters discarded") && answer.contains("1 letter stays"), "{answer}");
    let letter = page(&server, "/dead-letters/letter-f3-001").await;
    assert!(letter.contains("old schema (by local)"), "{letter}");
    let one = page(&server, "/dead-letters/letter-f1-004").await;
    assert!(one.contains("Discard 1 letter…") && !one.contains("1 letters"), "{one}");
    let answer = post(&server, "/dead-letters/discard", "ids=letter-f1-004&because=one&expected=1").await;
    assert!(answer.contains("1 letter discarded"), "{answer}");
}

#[tokio::test]
async fn s21_a_form_of_another_site_does_nothing() {
    let server = serve("").await;
    scene::fill(&server).await;
    for origin in [
        "Origin: http://evil.example",
        "Origin: null",
        "X: y",
        "Origin: http://localhost\r\nSec-Fetch-Site: cross-site",
    ] {
        let head = format!(
            "POST /dead-letters/discard HTTP/1.1\r\nHost: localhost\r\n{origin}\r\nContent-Type: application/x-www-form-urlencoded"
        );
        let answer = send_body(&server, &head, "fingerprint=f1&because=evil").await;
        assert_eq!(status(&answer), "403", "{origin}: {answer}");
    }
    assert!(page(&server, "/groups/f1").await.contains("data-term=\"12\""));
}

#[tokio::test]
async fn pages_say_when_the_ledger_has_no_tables() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("empty.db");
    let ledger = format!("[dead_letters.ledger]\nurl = \"sqlite:{}?mode=rwc\"\n", file.display());
    let server = serve(&ledger).await;
    let answer = get_with(&server, "/groups", "\r\nHost: localhost").await;
    assert!(status(&answer).starts_with('5'), "{answer}");
    assert!(answer.contains("migrate"), "{answer}");
}
