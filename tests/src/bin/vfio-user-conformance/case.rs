// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A case: a sentence about vfio-user servers, and the function that judges whether it is true of one.

use std::fmt;

use crate::server::Server;

/// Why a case is not passed.
#[derive(Debug)]
pub(crate) enum Finding {
    /// The server does something else than the sentence says.
    Fault(String),
    /// The server does not offer what the sentence is about.
    NotApplicable(String),
}

/// What comes of judging.
pub(crate) type Judgement<T = ()> = Result<T, Finding>;

/// The function that judges. It connects by itself, and leaves no connection behind.
type Judge = Box<dyn Fn(&Server) -> Judgement>;

/// One case.
pub(crate) struct Case {
    /// The sentence.
    pub(crate) name: &'static str,
    judge: Judge,
}

impl fmt::Debug for Case {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name)
    }
}

impl Case {
    pub(crate) fn new(name: &'static str, judge: impl Fn(&Server) -> Judgement + 'static) -> Self {
        Self { name, judge: Box::new(judge) }
    }

    /// Judges. Whatever the case sent, the next client must be served.
    pub(crate) fn run(&self, server: &Server) -> Judgement {
        let judgement = (self.judge)(server);
        let next = server.session().and_then(|mut client| client.expect_in_step());
        match (judgement, next) {
            (Ok(()) | Err(Finding::NotApplicable(_)), Err(Finding::Fault(fault))) => {
                Err(Finding::Fault(format!("the next client is not served: {fault}")))
            }
            (judgement, _) => judgement,
        }
    }
}

/// Cases that are a function each, which has the sentence for its name.
macro_rules! cases {
    ($($function:ident),+ $(,)?) => {
        vec![$($crate::case::Case::new(stringify!($function), $function)),+]
    };
}
pub(crate) use cases;

/// A fault unless the condition holds.
macro_rules! require {
    ($condition:expr, $($what:tt)+) => {
        if !$condition {
            return Err($crate::case::Finding::Fault(format!($($what)+)));
        }
    };
}
pub(crate) use require;

/// The server does something else than it should.
pub(crate) fn fault<T>(what: impl Into<String>) -> Judgement<T> {
    Err(Finding::Fault(what.into()))
}

/// The server does not offer what the case is about.
pub(crate) fn not_applicable<T>(why: impl Into<String>) -> Judgement<T> {
    Err(Finding::NotApplicable(why.into()))
}
