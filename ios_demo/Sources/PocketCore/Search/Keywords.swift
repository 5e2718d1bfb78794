import Foundation

private let longestQuery = 32  // words

// Those of runtimes/data/function_words.txt; a test compares them.
private let functionWords = Set(
    """
    a about an and any are as at be been but by can could did do does for from give had has have he her him his how i if in \
    into is it its kind many me much my name of on one or our please she so some tell than that the their them then there \
    these they this those to type us was we were what when where which who whom whose why will with would you your
    """.split(separator: " ").map(String.init))

/// The words of a question that say what it is about, each once, in order; all its words if none does.
func keywords(_ text: String) -> [String] {
    // With a locale, a sigma at a word's end is told from the others.
    let lower = { (word: String) in word.lowercased(with: Locale(identifier: "en_US_POSIX")) }
    let words = distinct(wordsOf(text).map(lower), by: \.self)
    let telling = words.filter { !functionWords.contains($0) }
    return Array((telling.isEmpty ? words : telling).prefix(longestQuery))
}

/// Runs of letters and digits; also with single joining characters between them.
private func wordsOf(_ text: String) -> [String] {
    var words: [String] = []
    var word = String.UnicodeScalarView()
    var joint: Unicode.Scalar?
    for scalar in text.unicodeScalars {
        if isWordScalar(scalar) {
            if let joint { word.append(joint) }
            joint = nil
            word.append(scalar)
        } else if joint == nil, !word.isEmpty, "-'’.".unicodeScalars.contains(scalar) {
            joint = scalar
        } else {
            if !word.isEmpty { words.append(String(word)) }
            (word, joint) = (String.UnicodeScalarView(), nil)
        }
    }
    return word.isEmpty ? words : words + [String(word)]
}

/// A letter or number of any script, or "_", as \w of Python has it.
private func isWordScalar(_ scalar: Unicode.Scalar) -> Bool {
    switch scalar.properties.generalCategory {
    case .uppercaseLetter, .lowercaseLetter, .titlecaseLetter, .modifierLetter, .otherLetter: true
    case .decimalNumber, .letterNumber, .otherNumber: true
    default: scalar == "_"
    }
}
