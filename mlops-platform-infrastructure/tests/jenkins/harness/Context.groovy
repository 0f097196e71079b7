/** Where a step is taken: path of stages, agent, environment. Its methods are the steps that a pipeline may take. */
class Context {
    private final Run run
    final List<String> path
    final String agent
    private final Map<String, Object> variables
    final String scm = 'scm'

    Context(Run run, List<String> path, String agent, Map<String, Object> variables) {
        this.run = run
        this.path = path
        this.agent = agent
        this.variables = variables
    }

    Context inside(String name, String agent) { new Context(run, path + name, agent, variables) }

    /** The environment grown by values; a credential becomes the variables that Jenkins makes of it. */
    Context with(Map<String, Object> more) {
        Map<String, Object> grown = new LinkedHashMap(variables)
        more.each { name, value ->
            if (value instanceof Map) {
                grown[name] = "SECRET-${value.credential}".toString()
                grown[name + '_USR'] = "SECRET-${value.credential}-user".toString()
                grown[name + '_PSW'] = "SECRET-${value.credential}-password".toString()
            } else {
                grown[name] = value.toString()
            }
        }
        return new Context(run, path, agent, grown)
    }

    void take(Closure block) { Model.fill(this, block) }

    /** Variables of the environment are readable by their bare name too, as in Jenkins. */
    Object getProperty(String name) {
        if (name == 'env') return variables
        if (name == 'params') return run.parameters
        if (variables.containsKey(name)) return variables[name]
        MetaProperty known = metaClass.getMetaProperty(name)
        if (!known) throw new MissingPropertyException(name, Context)
        return known.getProperty(this)
    }

    private void record(String kind, Map<String, Object> details) {
        if (!agent) throw new NotAllowed("${kind} in '${path.join(' / ')}' needs an agent")
        run.steps << ([kind: kind, stage: path.join(' / '), agent: agent] + details)
    }

    void sh(String command) {
        Map<String, Object> secrets = variables.findAll { it.value.startsWith('SECRET-') }
        record('sh', [command: command, secrets: secrets.keySet() as List, environment: variables - secrets])
        run.take(command)
    }

    void checkout(String what) { record('checkout', [what: what]) }
    void echo(String text) { record('echo', [text: text]) }
    void junit(String pattern) { record('junit', [pattern: pattern]) }

    void archiveArtifacts(Map given) {
        if (!given.artifacts) throw new NotAllowed('archiveArtifacts needs artifacts')
        record('archiveArtifacts', [pattern: given.artifacts])
    }

    /** What fails inside makes the build fail, and what comes after it is done all the same. */
    void catchError(Map given, Closure block) {
        if (given != [buildResult: 'FAILURE', stageResult: 'FAILURE']) throw new NotAllowed("catchError ${given}")
        run.goOn { take(block) }
    }

    void node(String label, Closure block) { new Context(run, path, label, variables).take(block) }

    Map string(Map given) { [(given.variable): [credential: given.credentialsId]] }

    void withCredentials(List<Map> bindings, Closure block) {
        with(bindings.inject([:]) { all, one -> all + one }).take(block)
    }
}
