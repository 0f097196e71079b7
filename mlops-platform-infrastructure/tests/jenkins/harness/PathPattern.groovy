/** Ant-style path patterns as the `changeset` condition understands them: `**` any folders, `*` within one name. */
class PathPattern {
    static boolean matches(String pattern, String path) {
        String whole = pattern.endsWith('/') ? pattern + '**' : pattern
        return path.toLowerCase() ==~ regex(whole.toLowerCase())
    }

    private static String regex(String pattern) {
        StringBuilder out = new StringBuilder()
        int at = 0
        while (at < pattern.length()) {
            if (pattern.startsWith('**/', at)) {
                out << '(?:[^/]+/)*'
                at += 3
            } else if (pattern.startsWith('/**', at) && at + 3 == pattern.length()) {
                out << '(?:/.*)?'
                at += 3
            } else if (pattern.startsWith('**', at)) {
                out << '.*'
                at += 2
            } else {
                String letter = pattern.substring(at, at + 1)
                out << (letter == '*' ? '[^/]*' : letter == '?' ? '[^/]' : java.util.regex.Pattern.quote(letter))
                at += 1
            }
        }
        return out.toString()
    }
}
